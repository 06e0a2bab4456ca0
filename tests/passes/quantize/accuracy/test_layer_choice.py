"""quantize-sensitivity and keep-accuracy: which layers cost accuracy, and taking the worst out."""

import json
from functools import cache

import pytest
import torch
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import PassError, UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.accuracy.keep_accuracy import KeepAccuracy
from planish.passes.quantize.accuracy.quantize_sensitivity import QuantizeSensitivity


class Net(nn.Module):
    """Four layers; the third has one channel a hundred times as large within each of its rows, which 4 bits lose."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)
        self.bad, self.head = nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        with torch.no_grad():
            self.bad.weight[:, 0] *= 30
            self.middle.weight[0] /= 30
            self.middle.bias[0] /= 30

    def forward(self, x):
        y = torch.relu(self.bad(torch.relu(self.middle(torch.relu(self.stem(x))))))
        return self.head(y.mean((2, 3)))


@cache
def captured() -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(Net().eval(), (torch.randn(2, 3, 9, 9),))


def net() -> Graph:
    return captured().copy()


DATA = list(torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(2)).split(4))
COARSE = "insert-fake-quant{weight-bits=4}, calibrate"


def score(graph: Graph) -> float:
    """Minus the mean squared difference to the float model."""
    whole = captured()
    with torch.no_grad():
        return -float(torch.cat([(graph(x) - whole(x)).double() for x in DATA]).square().mean())


@pytest.fixture(scope="module")
def coarse() -> Graph:
    return Pipeline.parse(COARSE).run(net(), Context(data=DATA)).graph


def run(text: str, graph: Graph, **options):
    outcome = Pipeline.parse(text).run(graph, Context(**{"data": DATA, **options}))
    return outcome.graph, outcome.steps[-1].result


def alone(layer: str, bits: int) -> Graph:
    """The same from the other side: quantizers are inserted for this layer only."""
    others = [name for name in ("stem", "middle", "bad", "head") if name != layer]
    text = f"insert-fake-quant{{weight-bits={bits}, keep=[{', '.join(others)}]}}, calibrate"
    return Pipeline.parse(text).run(net(), Context(data=DATA)).graph


def test_sensitivity_is_that_of_a_model_with_one_layer_quantized(coarse):
    graph, result = run("quantize-sensitivity{bits=[8, 4]}", coarse)
    details = json.loads(json.dumps(result.details, allow_nan=False))
    assert result.changed == 0 and details["measure"] == "squared difference of outputs" and details["baseline"] == 0
    assert details["layers"][0]["layer"] == "bad"
    values = [row["values"][-1] for row in details["layers"]]
    assert values == sorted(values, reverse=True)
    for row in details["layers"]:
        for bits, value in zip((8, 4), row["values"], strict=True):
            # A scale of 8 bits is that of 4 times 7/127, rounded once more to float32.
            assert value == pytest.approx(-score(alone(row["layer"], bits)), rel=1e-3)
    assert details["table"]["columns"] == ["layer", "8 bits", "4 bits"] and len(details["table"]["rows"]) == 4
    assert all(torch.equal(graph.weights[name], tensor) for name, tensor in coarse.weights.items())


def test_sensitivity_measures_what_the_context_has(coarse):
    _, result = run("quantize-sensitivity{bits=[4], only=[bad, head]}", coarse, evaluate=score)
    assert result.details["measure"] == "score" and result.details["higher_is_better"]
    assert [row["layer"] for row in result.details["layers"]] == ["bad", "head"]
    labelled = [(x, torch.zeros(4, dtype=torch.int64)) for x in DATA]
    assert run("quantize-sensitivity{only=[head]}", coarse, data=labelled)[1].details["measure"] == "loss"
    with pytest.raises(UsageError, match="'haed' in 'only' matches no weight"):
        run("quantize-sensitivity{only=[haed]}", coarse)
    with pytest.raises(UsageError, match="'bits' is 1"):
        QuantizeSensitivity(bits=(1,))
    with pytest.raises(UsageError, match="there is nothing to measure with"):
        run("quantize-sensitivity", coarse, data=None)


def weight_quantizers(graph: Graph) -> set[str]:
    return {str(q.args[0].target).removesuffix(".weight") for q in graph.calls("fake_quantize_per_channel_affine")}


def test_the_fewest_layers_return(coarse):
    """Against every number of layers in the order of the ranking."""
    ranking = [row["layer"] for row in run("quantize-sensitivity{bits=[4]}", coarse)[1].details["layers"]]
    reached = []
    for count in range(5):
        text = f"insert-fake-quant{{weight-bits=4, keep=[{', '.join(ranking[:count])}]}}, calibrate"
        rest = Pipeline.parse(text if count else COARSE).run(net(), Context(data=DATA)).graph
        reached.append(score(rest) if count < 4 else 0.0)
    assert reached == sorted(reached)  # what bisection takes for granted
    for drop in (-1.01 * reached[0], -1.01 * reached[1], -1.01 * reached[2], -1.01 * reached[3], 0.0):
        fewest = next(count for count, value in enumerate(reached) if value >= -drop)
        graph, result = run(f"keep-accuracy{{drop={drop:.17f}}}", coarse, evaluate=score)
        assert result.changed == fewest
        assert result.details["returned"] == ranking[:fewest]
        assert result.details["reached"] == pytest.approx(score(graph), rel=1e-6) or fewest == 4
        assert score(graph) >= -drop
        assert weight_quantizers(graph) == set(ranking[fewest:])
    assert not graph.calls("fake_quantize_per_tensor_affine")  # nothing reads integers any more


def test_a_good_model_is_left_and_a_second_run_changes_nothing(coarse):
    kept, result = run("keep-accuracy{drop=10.0}", coarse, evaluate=score)
    assert result.changed == 0 and result.details["returned"] == []
    assert weight_quantizers(kept) == {"stem", "middle", "bad", "head"}
    first, _ = run("keep-accuracy{drop=0.0001}", coarse, evaluate=score)
    _, again = run("keep-accuracy{drop=0.0001}", first, evaluate=score)
    assert again.changed == 0


def test_what_cannot_be_reached_fails(coarse):
    scores = iter([1.0, 0.0, 0.2])
    with pytest.raises(PassError, match=r"with all layers in float the score is 0\.2, 0\.9 is wanted"):
        run("keep-accuracy{drop=0.1}", coarse, evaluate=lambda _: next(scores))
    with pytest.raises(UsageError, match="no evaluation function was given"):
        run("keep-accuracy", coarse)
    with pytest.raises(UsageError, match="'drop' is -1; expected 0 or more"):
        KeepAccuracy(drop=-1.0)
    _, result = run("keep-accuracy", coarse, evaluate=score, fuel=Fuel(0))
    assert result.changed == 0
