"""to-half: which values become float16, what it declines, and how near the results stay to float64."""

import pytest
import torch
from example_graphs import made_once
from models import mobilenet, resnet
from torch import nn
from torch.nn import functional as F

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.ops import WEIGHTED_PRODUCTS
from planish.ir.verify import verify
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline
from planish.passes.to_half import ToHalf

HALF, FLOAT = torch.float16, torch.float32
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A conv, a norm and a softmax that stay float32, a residual, a layer that is used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.first(x)).flatten(2).transpose(1, 2)
        y = y + self.twice(self.norm(y))
        return self.head(self.twice(y).mean(1)).softmax(-1)


@made_once
def net() -> Graph:
    return capture(Net(), (X,))


def run(model: nn.Module | None = None, x: torch.Tensor = X, text: str = "to-half", **context):
    return Pipeline.parse(text).run(capture(model, (x,)) if model else net(), Context(**context))


def types(graph: Graph) -> dict[str, torch.dtype]:
    return {n.name: n.meta["val"].dtype for n in graph.nodes if n.op == "call_function" and "val" in n.meta}


def test_products_and_what_lies_between_are_half_and_the_edges_are_not():
    outcome = run()
    found = types(outcome.graph)
    assert {found[name] for name in ("conv2d", "relu", "linear", "add", "linear_1", "mean", "linear_2")} == {HALF}
    assert {found[name] for name in ("layer_norm", "softmax")} == {FLOAT}
    assert outcome.graph.inputs[0].dtype == FLOAT and outcome.graph.outputs[0].dtype == FLOAT
    # One conversion for each value and direction: the input, around the norm, before the softmax.
    assert len(outcome.graph.calls("to")) == 4
    assert "half" in outcome.graph.properties
    assert outcome.steps[-1].result.details == {"half_products": 4, "products": 4}
    verify(outcome.graph)


def test_a_layer_that_is_used_twice_has_one_half_weight():
    graph = run().graph
    assert sum(tensor.dtype == HALF for tensor in graph.weights.values()) == 2 * 3
    assert graph.weight("norm.weight").dtype == FLOAT


@pytest.mark.parametrize(("make", "size"), [(resnet, 16), (mobilenet, 32)])
def test_results_stay_near_float64(make, size):
    """Each value is rounded to 11 bits once, in some ten layers after one another: 16 * 2**-11 of the largest."""
    model, x = make().eval(), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    outcome = run(model, x, "fold-batch-norm, to-half")
    with torch.no_grad():
        got, wanted = outcome.graph(x), model.double()(x.double())
    assert all(n.meta["val"].dtype == HALF for n in outcome.graph.calls(*WEIGHTED_PRODUCTS))
    assert float((got.double() - wanted).abs().max()) < 16 * 2**-11 * float(wanted.abs().max())


def test_it_is_run_once():
    graph = run().graph
    again = Pipeline.parse("to-half").run(graph)
    assert again.graph.text() == graph.text()
    (step,) = again.steps
    assert [s.why for s in step.result.skipped] == ["it has no product in float32"]
    assert "half" in again.graph.properties or step.result.changed == 0


def why_skipped(model: nn.Module, x: torch.Tensor = X, text: str = "to-half", **context) -> list[str]:
    outcome = run(model, x, text, **context)
    verify(outcome.graph)
    return [skip.why for skip in outcome.steps[-1].result.skipped]


def test_kept_layers():
    outcome = run(text="to-half{keep=[twice]}")
    assert [s.why for s in outcome.steps[0].result.skipped] == 2 * ["it is listed in 'keep'; it stays float32"]
    found = types(outcome.graph)
    assert (found["linear"], found["linear_1"], found["linear_2"]) == (FLOAT, FLOAT, HALF)
    # The sum of a kept layer's result and a half value is half.
    assert found["add"] == HALF
    with pytest.raises(UsageError, match="'twin' in 'keep' matches no layer"):
        run(text="to-half{keep=[twin]}")


def scaled(factor: float) -> nn.Module:
    model = Net()
    with torch.no_grad():
        model.first.weight.mul_(factor)
    return model


def test_weights_that_float16_does_not_hold():
    (large,) = why_skipped(scaled(1e7))
    assert "'first.weight' holds" in large and "where float16 ends at 65504; it stays float32" in large
    (small,) = why_skipped(scaled(1e-5))
    assert "'first.weight' is too small: float16 would lose" in small
    assert why_skipped(scaled(0.01)) == []
    with pytest.raises(UsageError, match=r"'first\.weight' holds NaN or infinity"):
        run(scaled(float("inf")))


def test_results_beyond_float16_are_found_on_data():
    model = scaled(2e5)
    assert why_skipped(model) == []
    assert not bool(torch.isfinite(run(model).graph(X)).all())
    with pytest.raises(UsageError, match="data"):
        run(model, text="to-half{data=true}")
    reached = why_skipped(model, text="to-half{data=true}", data=[X])
    assert len(reached) >= 1 and all("on the data, where float16 ends at 65504" in why for why in reached)


class Rest(nn.Module):
    """What has no half form: a conv of one dimension, a weight that is computed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(3, 4, 3)
        self.weight = nn.Parameter(torch.randn(5, 6))

    def forward(self, x):
        return F.linear(self.conv(x.flatten(2)[..., :8]), self.weight * 2)


def test_layers_without_a_half_form():
    first, second = why_skipped(Rest())
    assert first == "only conv2d, conv_transpose2d, linear have kernels in float16; it stays float32"
    assert second == "its weight or bias is computed, not stored; it stays float32"
    assert why_skipped(nn.ReLU()) == ["it has no product in float32"]


def test_fuel_stops_between_layers():
    for amount in range(4):
        outcome = run(fuel=Fuel(amount))
        verify(outcome.graph)
        assert outcome.steps[0].result.changed == amount
        assert torch.allclose(outcome.graph(X), net()(X), atol=1e-2)


def test_as_text():
    text = "to-half{data=true, keep=[head]}"
    assert Pipeline.parse(str(Pipeline.parse(text))).passes == (ToHalf(keep=("head",), data=True),)
