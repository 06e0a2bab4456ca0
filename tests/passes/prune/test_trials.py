"""A model without some channels for a moment: zeroed where that is the same as cut, cut where it is not."""

from functools import cache

import numpy as np
import pytest
import torch
from models import EXAMPLES
from score_cases import MODELS, make_case
from torch import nn

from planish.ir.capture import capture
from planish.ir.graph import Graph
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.trials import Trials


class Mixing(nn.Module):
    """A layer norm counts the zeros of its input; keys times queries sum over activations, which tanh(0) + 1 is not."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.query, self.key, self.value = (nn.Linear(8, 5) for _ in range(3))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.norm(self.stem(x))
        attention = (torch.tanh(self.query(x)) + 1) @ (torch.tanh(self.key(x)) + 1).transpose(1, 2)
        return self.head(attention @ self.value(x))


@cache
def double(make, *shape: int) -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(make().double().eval(), torch.randn(2, *shape, dtype=torch.float64))


GRAPHS = {
    **{name: lambda make=make, shape=shape: double(make, *shape) for name, (make, shape) in EXAMPLES.items()},
    **{name: lambda name=name: make_case(name).graph for name in MODELS},
    "mixing": lambda: double(Mixing, 4, 6),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_measured_is_the_cut_model(name):
    """Every family loses half of its groups at random. Both sides are float64 sums in another order."""
    graph = GRAPHS[name]()
    groups, rng = Groups(IndexGraph(graph)), np.random.default_rng(0)
    trials, inputs = Trials(groups), graph.example_inputs(batch=2)
    inputs = tuple(x.double() for x in inputs)
    whole, differs = graph(*inputs), 0
    for family in groups.families:
        removed = rng.permutation(family.groups)[: len(family.groups) // 2]
        with trials.without(removed) as pruned, torch.no_grad():
            found = pruned(*inputs)
        with torch.no_grad():
            expected = trials._cut(removed)(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
        differs += not torch.allclose(found, whole, rtol=1e-6)
        for weight, tensor in trials.copy.weights.items():
            assert torch.equal(tensor, graph.weight(weight))
    assert differs == len(groups.families) > 0


def test_only_what_masking_would_get_wrong_is_cut():
    for name in GRAPHS.keys() - {"mixing"}:
        graph = GRAPHS[name]()
        assert not Trials(Groups(IndexGraph(graph))).cut_only.any(), name
    groups = Groups(IndexGraph(GRAPHS["mixing"]()))
    trials = Trials(groups)
    by_layer = {family.layer: trials.cut_only[family.groups] for family in groups.families}
    assert {layer: bool(cut.all()) for layer, cut in by_layer.items()} == {"stem": True, "query": True, "value": False}
    assert not by_layer["value"].any()
    for layer in ("stem", "query"):
        (family,) = [f for f in groups.families if f.layer == layer]
        removed, (x,) = family.groups[:2], groups.index.graph.example_inputs(batch=2)
        trials._mask(removed)
        masked, cut = trials.copy(x.double()), trials._cut(removed)(x.double())
        assert float((masked - cut).detach().abs().max()) > 1e-3  # zeros would have told another story
        trials = Trials(groups)
