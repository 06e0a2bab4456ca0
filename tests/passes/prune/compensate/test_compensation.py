"""Compensation of whole graphs: where it is exact, what it brings, what it leaves alone and why."""

import numpy as np
import pytest
import torch
from models import EXAMPLES
from torch import Tensor, nn
from torch.nn import functional

import planish
from planish.ir import rewrite
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.prune.compensate import compensate
from planish.passes.prune.cut import cut
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def captured(model: nn.Module, data: Tensor) -> Graph:
    return planish.capture(model.double().eval(), (data[:2],))


def without(graph: Graph, layer: str, channels: list[int], data, methods: tuple[str, ...]):
    """(the graph before, the graph without these output channels of a layer, the report)."""
    whole, index = graph.copy(), IndexGraph(graph)
    groups = Groups(index)
    alive = np.ones(groups.count, bool)
    gone = groups.number[index.channels[f"{layer}.weight"][channels]]
    assert (gone >= 0).all()
    alive[gone] = False
    atoms = groups.alive_atoms(alive)
    cut(index, atoms)
    report = compensate(whole, graph, index, atoms, Context(data=data), methods)
    verify(graph)
    return whole, graph, report


class TwoConvs(nn.Module):
    """Channel 1 of the first conv is constant, channel 2 is a combination of channels 0 and 3."""

    def __init__(self, padding: int = 0, groups: int = 1):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 4, 3, padding=padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def two_convs(**options) -> TwoConvs:
    model = TwoConvs(**options)
    with torch.no_grad():
        model.first.weight[1], model.first.bias[1] = 0, 0.7
        for tensor in (model.first.weight, model.first.bias):
            tensor[2] = 2 * tensor[0] - 0.5 * tensor[3] + (0.3 if tensor.ndim == 1 else 0)
    return model


def test_a_constant_channel_is_exactly_a_bias():
    data = images(4, 3, 8, 8)
    whole, graph, report = without(captured(two_convs(), data), "first", [1], [data], ("bias",))
    fresh = images(3, 3, 8, 8, seed=1)
    torch.testing.assert_close(graph(fresh), whole(fresh), rtol=1e-12, atol=1e-12)  # float64 rounding
    assert graph.weight("second.bias").shape == (4,)
    (layer,) = report["layers"]
    assert layer["layer"] == "second" and layer["how"] == "bias"
    assert layer["error"][0] > 1e-3 and layer["error"][1] <= 1e-14  # a difference of float64 squares


def test_zero_padding_leaves_the_mean_exact():
    """At the border fewer of the removed inputs are summed: a single number cannot be right everywhere."""
    data = images(6, 3, 8, 8)
    whole, graph, _ = without(captured(two_convs(padding=1), data), "first", [1, 2], data.split(4), ("bias",))
    lacking = whole(data) - graph(data)
    assert lacking.abs().max() > 1e-3
    # Means of some 400 float64 numbers near 1.
    torch.testing.assert_close(lacking.mean((0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_combination_of_what_is_left_is_reconstructed(groups):
    """Grouped: each group loses one channel; those of group 1 are combinations inside their group."""
    model = two_convs(groups=groups)
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias):
            tensor[6] = tensor[4] + 3 * tensor[7]
    data = images(24, 3, 8, 8)
    whole, graph, report = without(captured(model, data), "first", [2, 6], data.split(8), ("reconstruct",))
    fresh = images(3, 3, 8, 8, seed=1)
    size = whole(fresh).abs().max()
    (layer,) = report["layers"]
    assert layer["ridge"] == 1e-4
    assert (graph(fresh) - whole(fresh)).abs().max() <= 1e-3 * size  # what a ridge of 1e-4 of the variance leaves
    assert layer["error"][1] <= 1e-4 * layer["error"][0]


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.hidden(x)))


def test_a_linear_layer_gets_what_lstsq_finds():
    """Without anything compensated before it, the layer's weight is the closed form on its inputs."""
    data = images(300, 5)
    graph = captured(Mlp(), data)
    weights = {name: t.detach().numpy().copy() for name, t in graph.weights.items()}
    _, graph, report = without(graph, "hidden", [0, 4, 7], data.split(64), ("reconstruct",))
    hidden = np.maximum(data.numpy() @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
    kept = [1, 2, 3, 5, 6, 8, 9, 10, 11]
    wanted = hidden @ weights["head.weight"].T + weights["head.bias"]
    centred = hidden[:, kept] - hidden[:, kept].mean(0)
    penalty = report["layers"][0]["ridge"] * centred.var(axis=0).mean() * len(data)
    old = weights["head.weight"][:, kept].T
    stacked = np.vstack([centred, np.sqrt(penalty) * np.eye(9)])
    solved = np.linalg.lstsq(stacked, np.vstack([wanted - wanted.mean(0), np.sqrt(penalty) * old]), rcond=None)[0]
    # Normal equations lose the digits of a squared condition number of about 1e2.
    np.testing.assert_allclose(graph.weight("head.weight").detach().numpy(), solved.T, rtol=1e-9, atol=1e-11)
    mean = graph(data).detach().numpy().mean(0)
    np.testing.assert_allclose(mean, wanted.mean(0), rtol=1e-12, atol=1e-12)


METHODS = [("bias",), ("reconstruct",), ("bias", "reconstruct", "batch-norm")]


def thinned(name: str) -> tuple[Graph, Graph, IndexGraph, np.ndarray]:
    """A model and what is left of it without the first quarter of every family."""
    make, shape = EXAMPLES[name]
    graph = captured(make(), images(2, *shape))
    whole, index = graph.copy(), IndexGraph(graph)
    groups = Groups(index)
    alive = np.ones(groups.count, bool)
    for family in groups.families:
        alive[family.groups[: len(family.groups) // 4]] = False
    atoms = groups.alive_atoms(alive)
    cut(index, atoms)
    return whole, graph, index, atoms


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "densenet"])
def test_a_thinned_model_comes_nearer_to_the_whole_one(name):
    whole, graph, index, atoms = thinned(name)
    data, fresh = (images(48, *EXAMPLES[name][1], seed=seed) for seed in (0, 1))
    start = {key: weight.clone() for key, weight in graph.weights.items()}
    before = whole.text()
    with torch.no_grad():
        wanted = whole(fresh)
    errors = []
    for methods in METHODS:
        for key, weight in graph.weights.items():  # biases that were added begin at zero
            rewrite.set_weight(graph, key, start.get(key, torch.zeros_like(weight)))
        with torch.no_grad():
            errors.append([_error(graph(fresh), wanted)])
        report = compensate(whole, graph, index, atoms, Context(data=data.split(16)), methods)
        verify(graph)
        assert all(at["error"][1] <= at["error"][0] for at in report["layers"] if at["how"] != "batch-norm")
        with torch.no_grad():
            errors[-1].append(_error(graph(fresh), wanted))
    assert whole.text() == before
    assert all(after < 0.8 * first for first, after in errors)


def _error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).square().mean() / wanted.var())


def normalised(graph: Graph, data: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """batch norm -> (mean, variance) of its output over the data, by PyTorch's own interpreter."""
    found = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.name.startswith("batch_norm"):
                found[n.name] = (value.mean((0, 2, 3)), value.var((0, 2, 3)))
            return value

    with torch.no_grad():
        Watch(graph.module).run(data)
    return found


def test_batch_norms_give_what_they_gave_before():
    make, shape = EXAMPLES["resnet"]
    data = images(32, *shape)
    whole, graph, report = without(captured(make(), data), "stem.0", [0, 1, 2, 3], data.split(8), ("batch-norm",))
    changed = {layer["layer"] for layer in report["layers"]}
    assert len(changed) == len(whole.calls("batch_norm")) - 1
    assert "stem.1" not in changed  # what comes before the cut keeps its statistics
    assert torch.equal(graph.weight("stem.1.running_mean"), whole.weight("stem.1.running_mean")[4:])
    before, after = normalised(whole, data), normalised(graph, data)
    for name, moments in after.items():
        for got, wanted in zip(moments, before[name], strict=True):
            kept = wanted if len(got) == len(wanted) else wanted[4:]
            torch.testing.assert_close(got, kept, rtol=1e-9, atol=1e-9)  # variances as differences of float64 sums


def test_a_bias_goes_into_the_batch_norm_behind():
    make, shape = EXAMPLES["vgg"]
    data = images(16, *shape)
    graph = captured(make(), data)
    names = set(graph.weights)
    without(graph, "0.0", [0, 5], [data], ("bias",))
    assert set(graph.weights) == names
    assert graph.weight("2.1.running_mean").shape == (32,)


def test_the_same_data_gives_the_same_bytes():
    data = images(16, 3, 8, 8)
    model = two_convs(padding=1)
    one, two = (without(captured(model, data), "first", [1, 5], data.split(5), METHODS[2])[1] for _ in range(2))
    for name, weight in one.weights.items():
        assert torch.equal(weight, two.weights[name])


class Unbatched(nn.Module):
    """Convs on images without a batch dim."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("methods", [("bias",), ("reconstruct",)], ids="+".join)
def test_images_without_a_batch_and_batches_are_adjusted_alike(methods):
    torch.manual_seed(0)
    model, data = Unbatched().double().eval(), images(9, 3, 10, 12)
    single = planish.capture(model, (data[0],))
    _, single, _ = without(single, "first", [1, 5], list(data), methods)
    _, batched, _ = without(captured(model, data), "first", [1, 5], data.split(4), methods)
    for name, weight in batched.weights.items():
        torch.testing.assert_close(single.weight(name), weight, rtol=1e-8, atol=1e-10)  # sums in another order


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.other, self.second = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.gelu(self.first(x))) + self.second(self.other(x))


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Scores(nn.Module):
    """The dim that two values are multiplied over is cut."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x) @ self.key(x).mT


class OwnStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x)))


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.first(x), self.second)


DECLINES = {
    "its weight is a vector": (Vector, "first", (6,), ("bias",)),
    "its weight 'second.weight' is shared": (Shared, "first", (6,), ("bias",)),
    "there is no weight to adjust": (Scores, "query", (4, 6), ("bias", "reconstruct")),
    "it uses the statistics of its batch": (OwnStatistics, "first", (3, 4, 4), ("batch-norm",)),
    "outputs of a transposed conv overlap": (Transposed, "first", (3, 5, 5), ("reconstruct",)),
}


@pytest.mark.parametrize("reason", DECLINES)
def test_it_declines_with_the_reason(reason):
    make, layer, shape, methods = DECLINES[reason]
    data = images(8, *shape)
    _, _, report = without(captured(make(), data), layer, [1], [data], methods)
    assert not report["layers"]
    assert any(reason in why for _, why in report["skipped"])


def test_equations_that_are_too_large_leave_the_bias(monkeypatch):
    monkeypatch.setattr("planish.passes.prune.compensate.adjustments.EQUATIONS_BYTES", 1000)
    data = images(8, 3, 8, 8)
    graph = captured(two_convs(), data)
    _, _, report = without(graph, "first", [1], [data], ("bias", "reconstruct"))
    assert [layer["how"] for layer in report["layers"]] == ["bias"]


def test_a_transposed_conv_has_its_bias_corrected():
    data = images(8, 3, 5, 5)
    whole, graph, report = without(captured(Transposed(), data), "first", [1, 2], [data], ("bias", "reconstruct"))
    assert [layer["how"] for layer in report["layers"]] == ["bias"]
    torch.testing.assert_close(graph(data).mean((0, 2, 3)), whole(data).mean((0, 2, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("data", "methods", "message"),
    [
        (None, ("bias",), "no data was given"),
        ([], ("bias",), "the loader is empty"),
        ([torch.full((2, 5), float("nan"), dtype=torch.float64)], ("bias",), "NaN"),
        (images(2, 5), ("baias",), "did you mean 'bias'"),
    ],
)
def test_bad_input_is_refused(data, methods, message):
    graph = captured(Mlp(), images(2, 5))
    with pytest.raises(UsageError, match=message):
        without(graph, "hidden", [0], data, methods)


def test_prune_channels_compensates_after_its_proof():
    make, shape = EXAMPLES["mobilenet"]
    data = torch.randn(48, *shape, generator=torch.Generator().manual_seed(0))
    graph = planish.capture(make(), (data[:2],))
    errors = {}
    for option in ("", ", compensate=[bias, reconstruct, batch-norm]"):
        pipeline = planish.Pipeline.parse(f"prune-channels{{macs=0.7{option}}}")
        assert planish.Pipeline.parse(str(pipeline)) == pipeline
        outcome = pipeline.run(graph, Context(data=data.split(16)))
        details = outcome.steps[0].result.details
        assert details["proof_error"] <= 1e-9
        assert ("compensation" in details) == bool(option)
        with torch.no_grad():
            errors[option] = float((outcome.graph(data) - graph(data)).square().mean())
    assert min(errors, key=errors.__getitem__) != ""


def test_prune_channels_says_that_compensation_needs_data():
    graph = captured(Mlp(), images(2, 5))
    with pytest.raises(UsageError, match=r"^prune-channels: .*data"):
        planish.Pipeline.parse("prune-channels{ratio=0.5, compensate=[bias]}").run(graph)
    with pytest.raises(UsageError, match="did you mean 'reconstruct'"):
        planish.Pipeline.parse("prune-channels{ratio=0.5, compensate=[reconstuct]}")


def test_the_mean_behind_every_corrected_layer_is_what_it_was():
    """In a chain of blocks with residual adds, and through the running means of batch norms."""
    whole, graph, index, atoms = thinned("mobilenet")
    data = images(24, *EXAMPLES["mobilenet"][1])
    report = compensate(whole, graph, index, atoms, Context(data=data.split(8)), ("bias",))
    corrected = {layer["layer"] for layer in report["layers"]}
    before, after, compared = normalised(whole, data), normalised(graph, data), 0
    for norm in graph.calls("batch_norm"):
        if str(norm.args[0].args[1].target).removesuffix(".weight") in corrected:
            kept = torch.from_numpy(atoms[index[norm][1]])
            # Means of 24 x 64 numbers near 1, shifts computed in float64.
            torch.testing.assert_close(after[norm.name][0], before[norm.name][0][kept], rtol=1e-10, atol=1e-10)
            compared += 1
    assert compared >= 7


@pytest.mark.parametrize("held", [0, 60_000])
def test_running_the_graphs_again_gives_the_same_bytes(held, monkeypatch):
    """Nothing is held from one layer to the next, or only where little is in use."""
    data = images(12, *EXAMPLES["vgg"][1])
    results = []
    for limit in (2**30, held):
        monkeypatch.setattr("planish.passes.layers.side_by_side.HELD_BYTES", limit)
        whole, graph, index, atoms = thinned("vgg")
        compensate(whole, graph, index, atoms, Context(data=data.split(4)), METHODS[2])
        results.append(graph.weights)
    for name, weight in results[0].items():
        assert torch.equal(weight, results[1][name])
