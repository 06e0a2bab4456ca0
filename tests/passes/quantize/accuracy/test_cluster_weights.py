"""Weight clustering: the codebook against plain Lloyd iterations in numpy, zeros, ties and refusals."""

import numpy as np
import pytest
import torch
from example_graphs import example_graph
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.accuracy.cluster_weights import ClusterWeights


def run(graph, ctx=None, **options):
    outcome = Pipeline([ClusterWeights(**options)]).run(graph, ctx)
    return outcome.graph, outcome.steps[0].result


def net(*layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in layers:
            layer.reset_parameters()
    return capture(nn.Sequential(*layers).eval(), (torch.randn(2, 12),))


def lloyd(values: np.ndarray, clusters: int, rounds: int) -> np.ndarray:
    book = np.linspace(values.min(), values.max(), clusters)
    for _ in range(rounds):
        codes = np.abs(values[:, None] - book).argmin(1)
        book = np.array([values[codes == k].mean() if (codes == k).any() else book[k] for k in range(clusters)])
    return book[np.abs(values[:, None] - book).argmin(1)]


@pytest.mark.parametrize("clusters", [2, 5, 16])
def test_values_are_those_of_k_means(clusters):
    graph = net(nn.Linear(12, 20))
    done, result = run(graph, clusters=clusters, rounds=8)
    weight = graph.weights["0.weight"].detach().double().numpy().reshape(-1)
    found = done.weights["0.weight"].detach().double().numpy().reshape(-1)
    assert len(np.unique(found)) <= clusters and result.changed == 1
    np.testing.assert_allclose(found, lloyd(weight, clusters, 8), rtol=1e-6, atol=1e-8)  # stored in float32
    (entry,) = result.details["weights"]
    assert entry["error"] == pytest.approx(((found - weight) ** 2).sum() / (weight**2).sum(), rel=1e-9)
    again, second = run(done, clusters=clusters, rounds=8)
    assert second.changed == 0 and "no more than 'clusters'" in second.skipped[0].why
    assert torch.equal(again.weights["0.weight"], done.weights["0.weight"])


def test_zeros_stay_zeros_after_sparsify():
    graph = example_graph("resnet")
    outcome = Pipeline.parse("sparsify{sparsity=0.5}, cluster-weights{clusters=8}").run(graph)
    sparse = Pipeline.parse("sparsify{sparsity=0.5}").run(graph).graph
    assert outcome.steps[1].result.changed > 5
    for name in (entry["weight"] for entry in outcome.steps[1].result.details["weights"]):
        before, after = sparse.weights[name], outcome.graph.weights[name]
        assert bool((after[before == 0] == 0).all())
        assert len(after.unique()) <= 8


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return nn.functional.linear(self.layer(self.layer(x)), self.other.weight * 2)


def test_shared_weights_once_and_computed_ones_not():
    graph = capture(Shared().eval(), (torch.randn(2, 6),))
    _, result = run(graph, clusters=4)
    assert [entry["weight"] for entry in result.details["weights"]] == ["layer.weight"]
    assert [skip.why for skip in result.skipped] == ["its weight is computed"]


def test_options_only_and_fuel():
    graph = net(nn.Linear(12, 12), nn.Linear(12, 8))
    done, _ = run(graph, clusters=4, only=("1",))
    assert torch.equal(done.weights["0.weight"], graph.weights["0.weight"])
    assert run(graph, Context(fuel=Fuel(1)), clusters=4)[1].changed == 1
    for options, what in (
        ({"clusters": 1}, "'clusters' is 1"),
        ({"clusters": 257}, "2 to 256"),
        ({"rounds": 0}, "'rounds' is 0"),
    ):
        with pytest.raises(UsageError, match=what):
            ClusterWeights(**options)
    assert str(Pipeline.parse("cluster-weights{clusters=8, only=[head]}")) == "cluster-weights{clusters=8, only=[head]}"
