"""quantize-dynamic: it fires, declines with reasons, and is as near to float as PyTorch's own dynamic quantization."""

import warnings
from collections import OrderedDict
from functools import cache

import pytest
import torch
from torch import nn

from planish.ir.capture import capture
from planish.ir.cost import cost
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline


class Tagger(nn.Module):
    """An LSTM over tokens' features and a linear layer on each of its outputs."""

    def __init__(self, **options):
        super().__init__()
        self.lstm = nn.LSTM(12, 16, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


@cache
def _tagger(**options) -> tuple[nn.Module, torch.Tensor, Graph]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Tagger(**options).eval(), torch.randn(6, 9, 12)
    return model, x, capture(model, (x,))


def tagger(**options) -> tuple[nn.Module, torch.Tensor, Graph]:
    """A model, an input and a graph of one's own."""
    model, x, graph = _tagger(**options)
    return model, x, graph.copy()


def run(text: str, graph: Graph, **options):
    outcome = Pipeline.parse(text).run(graph, Context(**options))
    return outcome.graph, outcome.steps[-1].result


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "two, both ways"])
def test_it_is_at_least_as_near_to_float_as_pytorchs_own(options):
    model, x, graph = tagger(**options)
    dynamic, result = run("quantize-dynamic", graph)
    assert result.changed == 2 and result.skipped == () and "integers" in dynamic.properties
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation in favour of torchao, which has no LSTM
        torchs = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        whole = model(x)
        ours, theirs = ((found - whole).square().mean().sqrt() for found in (dynamic(x), torchs(x)))
    # One scale per output beside one per weight, and 8 bits of activation beside 7.
    assert 0 < ours < theirs < 0.05


def test_weights_are_bytes_and_products_are_integers():
    _, _, graph = tagger()
    dynamic, result = run("quantize-dynamic", graph)
    matrices = 64 * (12 + 16) + 5 * 16
    outputs = 64 + 64 + 5
    before, after = result.details["weight_bytes"]
    assert before == 4 * (matrices + outputs) and after == matrices + 4 * outputs * 2
    assert cost(dynamic).macs == cost(graph).macs > 0 and cost(dynamic).params == cost(graph).params
    assert {"lstm_dynamic", "linear_dynamic"} <= {n.name.rstrip("_1") for n in dynamic.nodes if n.op == "call_function"}
    weight = dynamic.weights["head.weight_int8"].float() * dynamic.weights["head.weight_scales"][:, None]
    scale = dynamic.weights["head.weight_scales"][:, None]
    # Rounded to nearest, half a step at most; a float32 rounding on top.
    assert bool(((weight - graph.weights["head.weight"]).abs() <= scale / 2 * 1.0001).all())


def test_a_second_run_changes_nothing_and_says_so():
    _, _, graph = tagger()
    dynamic, _ = run("quantize-dynamic", graph)
    again, result = run("quantize-dynamic", dynamic)
    assert again.text() == dynamic.text()
    assert [skip.why for skip in result.skipped] == ["it has no linear layer and no LSTM"]


@pytest.mark.parametrize(
    ("options", "left"),
    [("keep=[head]", "lstm"), ("keep=[linear]", "lstm"), ("only=[head]", "linear"), ("keep=[lstm]", "linear")],
)
def test_the_user_chooses(options, left):
    _, _, graph = tagger()
    dynamic, result = run(f"quantize-dynamic{{{options}}}", graph)
    assert result.changed == 1 and len(dynamic.calls(f"{left}_dynamic")) == 1
    reason = "it is not in 'only'" if "only" in options else f"'keep' lists '{options[6:-1]}'"
    assert [skip.why for skip in result.skipped] == [f"{reason}; it stays in float"]


class Odd(nn.Module):
    """What cannot be had: a computed weight, an LSTM with projections, sums of 70,000 products, a double."""

    def __init__(self):
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 1))
        self.lstm = nn.LSTM(4, 6, proj_size=3, batch_first=True)
        self.wide, self.exact = nn.Linear(70_000, 1, bias=False), nn.Linear(4, 2).double()

    def forward(self, x, wide):
        y = nn.functional.linear(x, self.weight * self.factor)
        return y, self.lstm(x)[0], self.wide(wide), self.exact(x.double())


def test_each_reason_to_decline():
    x, wide = torch.randn(2, 5, 4), torch.randn(2, 70_000)
    graph = capture(Odd().eval(), (x, wide))
    dynamic, result = run("quantize-dynamic", graph)
    assert result.changed == 0 and "integers" not in dynamic.properties
    assert sorted(skip.why.removesuffix("; it stays in float") for skip in result.skipped) == [
        "it has projections",
        "its input is not float32",
        "its sums of 70000 products can leave int32",
        "its weight is computed or rounded",
    ]


def test_quantized_inputs_are_left_to_lower_integers_and_rounded_weights_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = {"first": nn.Linear(8, 6), "relu": nn.ReLU(), "second": nn.Linear(6, 4)}
        model, x = nn.Sequential(OrderedDict(layers)).eval(), torch.randn(3, 8)
    quantizers = "insert-fake-quant{only=[first]}, insert-fake-quant{only=[second], activations=none}, calibrate"
    _, result = run(f"{quantizers}, quantize-dynamic", capture(model, (x,)), data=[x])
    assert [skip.why.split(";")[0] for skip in result.skipped] == [
        "its input is quantized already",
        "its weight is computed or rounded",
    ]
    # Where one layer is integers by calibration, the other one can still be dynamic.
    mixed = "insert-fake-quant{only=[first]}, calibrate, lower-integers, quantize-dynamic"
    lowered, result = run(mixed, capture(model, (x,)), data=[x])
    assert result.changed == 1 and len(lowered.calls("linear_int32")) == len(lowered.calls("linear_dynamic")) == 1


def test_fuel_and_refusals():
    _, _, graph = tagger()
    _, result = run("quantize-dynamic", graph, fuel=Fuel(1))
    assert result.changed == 1
    with pytest.raises(UsageError, match="'haed' in 'keep' matches no linear layer or LSTM; did you mean 'head'"):
        run("quantize-dynamic{keep=[haed]}", graph)
    with pytest.raises(UsageError, match="unknown weight-observer 'min-maxx'; did you mean 'min-max'"):
        Pipeline.parse("quantize-dynamic{weight-observer=min-maxx}")


def test_a_saved_graph_computes_the_same(tmp_path):
    _, x, graph = tagger()
    dynamic, _ = run("quantize-dynamic{weight-observer=mean-squared-error}", graph)
    dynamic.save(tmp_path / "graph.planish")
    assert torch.equal(Graph.load(tmp_path / "graph.planish")(x), dynamic(x))
