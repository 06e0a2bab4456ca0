"""Bias correction: means over the data, measured apart from the pass."""

import pytest
import torch
from example_graphs import example_graph
from models import EXAMPLES
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.ops import arguments
from planish.passes.base import Context, Fuel
from planish.passes.forward import forward
from planish.passes.pipeline import Pipeline

COARSE = "fold-batch-norm, insert-fake-quant{weight-bits=3}, calibrate"


def batches(*shape: int, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, *shape, generator=generator) for _ in range(count)]


def means(graph: Graph, data: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Per product, by node name, the mean of each output channel over the data, in float64."""
    sums: dict[str, list[torch.Tensor]] = {}

    def watch(node, value):
        if node in products:
            rows = value if value.ndim == 2 else value.movedim(1, -1).flatten(0, -2)
            sums.setdefault(node.name, []).append(rows.double())

    products = set(graph.calls("conv2d", "linear", "conv_transpose2d"))
    with torch.no_grad():
        for batch in data:
            forward(graph, (batch,), watch=watch)
    return {name: torch.cat(rows).mean(0) for name, rows in sums.items()}


def run(text: str, graph: Graph, data, **options):
    outcome = Pipeline.parse(text).run(graph, Context(data=data, **options))
    return outcome.graph, outcome.steps[-1].result


@pytest.mark.parametrize("name", ["vgg", "mobilenet"])
def test_every_layer_has_its_float_mean(name):
    data = batches(*EXAMPLES[name][1])
    graph = example_graph(name)
    folded, _ = run("fold-batch-norm", graph, data)
    coarse, _ = run(COARSE, graph, data)
    corrected, result = run("correct-bias", coarse, data)
    wanted, before, after = (means(which, data) for which in (folded, coarse, corrected))
    assert result.changed == len(wanted) == len(result.details["layers"]) and result.skipped == ()
    for layer, mean in wanted.items():
        # A mean of float32 values, whose bias was rounded to float32.
        torch.testing.assert_close(after[layer], mean, rtol=1e-5, atol=1e-5)
        assert (before[layer] - mean).abs().max() > 1e-3
    for entry in result.details["layers"]:
        assert entry["error"][1] <= entry["error"][0]


def test_a_layer_without_bias_gets_one_and_transposed_convs_are_corrected():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, bias=False), nn.Flatten(),
            nn.Linear(256, 3, bias=False),
        )  # fmt: skip
    data = batches(3, 8, 8)
    graph = capture(model.eval(), (data[0],))
    corrected, result = run(f"{COARSE}, correct-bias", graph, data)
    assert result.changed == 3
    wanted, after = means(graph, data), means(corrected, data)
    for layer, mean in wanted.items():
        torch.testing.assert_close(after[layer], mean, rtol=1e-5, atol=1e-5)
    assert {"0.bias", "2.bias", "4.bias"} <= corrected.parameters.keys()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.conv(torch.relu(self.conv(x))).mean((2, 3)))


def test_a_shared_weight_is_skipped():
    data = batches(3, 6, 6)
    _, result = run(f"{COARSE}, correct-bias", capture(Tied().eval(), (data[0],)), data)
    assert result.changed == 1
    assert [skip.why for skip in result.skipped] == [
        "its weight 'conv.weight' is shared with 'conv2d_1'",
        "its weight 'conv.weight' is shared with 'conv2d'",
    ]


def test_a_second_run_and_moved_weights_are_refused():
    data = batches(3, 16, 16, count=1)
    graph = example_graph("resnet")
    corrected, _ = run(f"{COARSE}, correct-bias", graph, data)
    with pytest.raises(UsageError, match="the graph has 'bias-corrected' by then"):
        run("correct-bias", corrected, data)
    with pytest.raises(UsageError, match="the graph has 'bias-corrected' by then"):
        run("round-weights", corrected, data)
    with pytest.raises(UsageError, match="it needs 'calibrated'"):
        run("correct-bias", graph, data)


def test_refusals():
    with pytest.raises(UsageError, match="'how' is 'x'; expected empirical or analytic"):
        Pipeline.parse("correct-bias{how=x}")
    graph = example_graph("resnet")
    calibrated, _ = run(COARSE, graph, batches(3, 16, 16, count=1))
    with pytest.raises(UsageError, match="the loader is empty"):
        run("correct-bias", calibrated, [])


def test_fuel_stops_it():
    data = batches(3, 16, 16, count=1)
    calibrated, _ = run(COARSE, example_graph("resnet"), data)
    corrected, result = run("correct-bias", calibrated, data, fuel=Fuel(1))
    assert result.changed == 1
    first, second = (arguments(p).bias for p in calibrated.calls("conv2d")[:2])
    assert not torch.equal(corrected.weight(first), calibrated.weight(first))
    assert torch.equal(corrected.weight(second), calibrated.weight(second))
