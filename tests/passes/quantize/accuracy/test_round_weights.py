"""round-weights on whole graphs: the grid exactly, the error as reported, determinism and refusals."""

import pytest
import torch
from example_graphs import made_once
from models import ConvNorm
from torch import nn
from torch.nn import functional

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.ops import arguments
from planish.ir.verify import verify
from planish.passes.base import Context, Fuel
from planish.passes.forward import forward
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.accuracy.round_weights import RoundWeights

COARSE = "fold-batch-norm, insert-fake-quant{weight-bits=4}, calibrate"
QUICK = "round-weights{iterations=150, rows=512}"


class Small(nn.Module):
    """Every kind of layer: strided, depthwise with relu6, pointwise, and linear without bias."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 6, 1, bias=False)
        self.head = nn.Linear(6, 5, bias=False)

    def forward(self, x):
        y = functional.relu6(self.depthwise(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.project(y)).mean((2, 3)))


@made_once
def small() -> Graph:
    torch.manual_seed(1)
    return capture(Small().eval(), (torch.randn(2, 3, 12, 12),))


def batches(count: int = 4, size: int = 5, shape=(3, 12, 12)) -> list[torch.Tensor]:
    """Smooth images: neighbouring inputs of a layer hang together, as in photographs."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(count * size, shape[0], 4, 4, generator=generator)
    fine = functional.interpolate(coarse, shape[1:], mode="bilinear")
    return list((fine + 0.05 * torch.randn(fine.shape, generator=generator)).split(size))


def run(text: str, graph: Graph, data, **options):
    outcome = Pipeline.parse(text).run(graph, Context(data=data, **options))
    return outcome.graph, outcome.steps[-1].result


@pytest.fixture(scope="module")
def coarse() -> Graph:
    return run(COARSE, small(), batches())[0]


def levels(graph: Graph) -> dict[str, torch.Tensor]:
    """Each weight over its scale, in float64."""
    found = {}
    for quantizer in graph.calls("fake_quantize_per_channel_affine"):
        call = arguments(quantizer)
        weight = graph.weight(call.self).detach().double()
        found[str(call.self.target)] = weight / graph.weight(call.scale).double().view(-1, *[1] * (weight.ndim - 1))
    return found


def noise(graph: Graph, whole: Graph, data) -> float:
    with torch.no_grad():
        return sum(float((graph(x) - whole(x)).double().square().sum()) for x in data)


def test_weights_are_on_the_grid_and_fake_quant_changes_nothing(coarse):
    graph, result = run(QUICK, coarse, batches())
    assert result.changed == 4
    for name, level in levels(graph).items():
        # A product of an integer and a float32 is rounded once: 2**-24 of at most 7.
        assert float((level - level.round()).abs().max()) < 1e-6, name
        assert float(level.abs().max()) <= 7 + 1e-6
    for quantizer in graph.calls("fake_quantize_per_channel_affine"):
        args = [graph.weight(a) if hasattr(a, "target") else a for a in quantizer.args]
        assert torch.equal(torch.fake_quantize_per_channel_affine(*args), args[0])
    assert sum(entry["learned"] and entry["moved"] > 0.03 for entry in result.details["layers"]) >= 1
    verify(graph)


def test_the_output_is_nearer_to_float_on_other_data(coarse):
    whole, others = small(), batches(8)[4:]
    rounded, _ = run(QUICK, coarse, batches())
    # 4 bits, a few channels: what was learned has to hold for data that was not seen.
    assert noise(rounded, whole, others) < 0.5 * noise(coarse, whole, others)


@pytest.mark.parametrize("options", ["refit=false", "scales=keep", "refit=false, scales=keep"])
def test_every_part_alone_helps(coarse, options):
    whole, others = small(), batches(8)[4:]
    rounded, _ = run(f"round-weights{{iterations=60, rows=512, {options}}}", coarse, batches())
    assert noise(rounded, whole, others) < 0.8 * noise(coarse, whole, others)


def test_plain_adaround_rounds_each_weight_down_or_up(coarse):
    graph, _ = run("round-weights{iterations=60, rows=512, refit=false, scales=keep}", coarse, batches())
    for name, level in levels(graph).items():
        exact = levels(coarse)[name]
        assert float((level - exact).abs().max()) < 1 + 1e-6
    scales = [name for name in coarse.weights if name.endswith("_scale")]
    assert all(torch.equal(graph.weights[name], coarse.weights[name]) for name in scales)


def test_the_reported_error_is_that_of_the_final_graph():
    """Fewer samples than a held-out part takes, and all positions: then it can be measured from outside.

    A layer that had learned on what earlier layers gave before they were rounded would report another error.
    """
    data = batches(1, 4)
    coarse, _ = run(COARSE, small(), data)
    graph, result = run("round-weights{iterations=60, rows=100000}", coarse, data)
    behind = {"stem": "relu", "depthwise": "relu6", "project": "relu_1", "head": "linear"}
    found: dict[str, torch.Tensor] = {}
    wanted: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        forward(graph, (data[0],), watch=lambda n, v: found.__setitem__(n.name, v))
        forward(small(), (data[0],), watch=lambda n, v: wanted.__setitem__(n.name, v))
    for entry in result.details["layers"]:
        y, z = (values[behind[entry["layer"]]].double().transpose(0, 1).flatten(1) for values in (found, wanted))
        share = float((y - z).square().sum() / (z - z.mean(1, keepdim=True)).square().sum())
        assert entry["error"][1] == pytest.approx(share, rel=1e-3), entry["layer"]  # float32 sums in another order


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(coarse):
    torch.manual_seed(7)
    one, first = run(QUICK, coarse, batches(), seed=3)
    torch.manual_seed(8)
    state = torch.get_rng_state()
    two, second = run(QUICK, coarse, batches(), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.details == second.details
    assert all(torch.equal(two.weights[name], tensor) for name, tensor in one.weights.items())
    other, _ = run(QUICK, coarse, batches(), seed=4)
    assert any(not torch.equal(other.weights[name], tensor) for name, tensor in one.weights.items())


def test_held_values_change_no_bit(coarse, monkeypatch):
    kept, _ = run(QUICK, coarse, batches())
    monkeypatch.setattr("planish.passes.layers.side_by_side.HELD_BYTES", 0)
    again, _ = run(QUICK, coarse, batches())
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in kept.weights.items())


def test_batch_norms_that_are_not_folded_are_part_of_the_layer():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = [ConvNorm(3, 8, activation=nn.ReLU6), ConvNorm(8, 8, groups=8), ConvNorm(8, 4, 1, nn.Identity)]
        model = nn.Sequential(*layers).train()
        for batch in batches():
            model(batch)  # running statistics
    source = capture(model.eval(), (batches()[0],))
    coarse, _ = run("insert-fake-quant{weight-bits=4}, calibrate", source, batches())
    rounded, result = run(QUICK, coarse, batches())
    assert result.changed == 3 and len(rounded.calls("batch_norm")) == 3
    others = batches(8)[4:]
    assert noise(rounded, source, others) < 0.6 * noise(coarse, source, others)


def test_scales_are_those_of_the_best_share(coarse):
    """Against every share, the error computed on the float inputs' own second moments in float64."""
    data = batches()
    graph, _ = run("round-weights{iterations=1, rows=100000, refit=false, only=[stem]}", coarse, data)
    call = next(q for q in coarse.calls("fake_quantize_per_channel_affine") if q.args[0].target == "stem.weight")
    weight = coarse.weights["stem.weight"].detach().double().flatten(1)
    # The stem reads the quantized images, of which every fifth is held out.
    x = torch.cat(data)
    x = torch.fake_quantize_per_tensor_affine(
        x, coarse.weights["x.activation_scale"], coarse.weights["x.activation_zero_point"], -128, 127
    )
    x = x[[i for i in range(len(x)) if i % 5 != 4]].double()
    rows = functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    second = rows.T @ rows / len(rows)
    best = torch.full((len(weight),), torch.inf, dtype=torch.float64)
    for step in range(31):
        scale = (weight.abs().amax(1) * (1 - 0.02 * step) / 7).float().double()
        change = (weight / scale[:, None]).round().clamp(-7, 7) * scale[:, None] - weight
        best = torch.minimum(best, ((change @ second) * change).sum(1))
    scale = graph.weights[str(call.args[1].target)].double()
    change = (weight / scale[:, None]).round().clamp(-7, 7) * scale[:, None] - weight
    found = ((change @ second) * change).sum(1)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=0)  # second moments in float32
    assert bool((graph.weights["stem.weight_scale"] < coarse.weights["stem.weight_scale"]).any())


def test_more_samples_than_rows_are_thinned(coarse):
    """20 samples and 8 rows: every third sample gives one."""
    one, result = run("round-weights{iterations=3, rows=8}", coarse, batches())
    two, _ = run("round-weights{iterations=3, rows=8}", coarse, [torch.cat(batches())])
    assert result.changed == 4
    assert torch.equal(one.weights["stem.weight"], two.weights["stem.weight"])  # batches do not matter


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.tied, self.up = nn.Conv2d(3, 3, 3, padding=1), nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.head = nn.Conv1d(4, 2, 3)

    def forward(self, x):
        y = self.up(torch.relu(self.tied(torch.relu(self.tied(x)))))
        return self.head(torch.relu(y).mean(3))


def test_skips():
    data = batches(2)
    _, result = run(f"{COARSE}, {QUICK}", capture(Odd().eval(), (data[0],)), data)
    assert [skip.why for skip in result.skipped][:3] == [
        "its weight 'tied.weight' is shared with 'conv2d_1'",
        "its weight 'tied.weight' is shared with 'conv2d'",
        "outputs of a transposed conv overlap: it is rounded to nearest",
    ]
    assert result.changed == 1 and result.details["layers"][0]["layer"] == "head"


def test_what_does_worse_on_held_out_data_is_dropped(coarse, monkeypatch):
    """With a fault in the learner, nearest rounding is taken, and the report says so."""
    names = RoundWeights._round.__globals__
    monkeypatch.setitem(names, "learn_rounding", lambda problem, *_: -problem.nearest())
    graph, result = run(QUICK, coarse, batches())
    assert [skip.why for skip in result.skipped] == ["rounding to nearest is better on the data held out"] * 4
    assert all(entry["moved"] == 0 and not entry["learned"] for entry in result.details["layers"])
    assert noise(graph, small(), batches()) < noise(coarse, small(), batches())


def test_only_and_fuel(coarse):
    graph, result = run("round-weights{iterations=5, rows=64, only=[project]}", coarse, batches())
    assert [entry["layer"] for entry in result.details["layers"]] == ["project"]
    assert torch.equal(graph.weights["stem.weight"], coarse.weights["stem.weight"])
    with pytest.raises(UsageError, match="'projekt' in 'only' matches no weight"):
        run("round-weights{only=[projekt]}", coarse, batches())
    _, result = run("round-weights{iterations=5, rows=64}", coarse, batches(), fuel=Fuel(2))
    assert result.changed == 2


def test_refusals(coarse):
    rounded, _ = run("round-weights{iterations=2, rows=16}", coarse, batches(1))
    for text in ("round-weights", "correct-bias", "calibrate", "keep-accuracy", "quantize-sensitivity"):
        with pytest.raises(UsageError, match="the graph has 'weights-rounded' by then"):
            run(text, rounded, batches())
    for options, what in (
        ({"iterations": 0}, "'iterations' is 0"),
        ({"rows": 0}, "'rows' is 0"),
        ({"rate": 0.0}, "'rate' is 0"),
        ({"pressure": -1.0}, "'pressure' is -1"),
        ({"scales": "best"}, "expected search or keep"),
    ):
        with pytest.raises(UsageError, match=what):
            RoundWeights(**options)
    with pytest.raises(UsageError, match="no data was given"):
        run("round-weights", coarse, None)
    text = "round-weights{iterations=5, scales=keep, refit=false, only=[stem]}"
    assert str(Pipeline.parse(text)) == text
