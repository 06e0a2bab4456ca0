"""The proof catches wrong rules and wrong cuts. Each mutant is a mistake that a rule could plausibly make."""

from functools import cache

import numpy as np
import pytest
import torch
from example_graphs import example_graph
from models import EXAMPLES
from torch import nn

from planish.ir import rewrite
from planish.ir.capture import capture
from planish.ir.errors import VerifyError
from planish.passes.prune.cut import cut
from planish.passes.prune.groups import Groups
from planish.passes.prune.index import rules
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.index.rules.table import replace_dim
from planish.passes.prune.proof import TOLERANCE, Snapshot, prove


class GroupedTransposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.before = nn.Conv2d(3, 8, 1)
        self.up = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4)
        self.after = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        return self.after(self.up(self.before(x)))


@cache
def captured(name: str):
    torch.manual_seed(0)
    if name == "layer norm":
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
        return capture(model, torch.randn(2, 5, 6))
    if name == "grouped transposed":
        return capture(GroupedTransposed(), torch.randn(2, 3, 6, 6))
    return example_graph(name)


def example(name: str):
    return captured(name).copy()


def reversed_cat(index, node, call):
    """The parts in the wrong order."""
    inputs = [index[x] for x in call.tensors]
    return replace_dim(inputs[0], call.dim, np.concatenate([x[call.dim] for x in reversed(inputs)]))


def rolled_norm(index, node, call):
    """Parameters shifted by one against the channels."""
    x, *parameters = (index[source] for source in index.tensor_inputs(node))
    for (parameter,) in parameters:
        index.tie(np.roll(x[1], 1), parameter)
    return x


def channels_last_flatten(index, node, call):
    """Positions as the slow digit and channels as the fast one: right for NHWC, wrong here."""
    x, (shape,) = index[call.self], [[len(index[call.self][0]), int(node.meta["val"].shape[1])]]
    channels, positions = x[1], shape[1] // len(x[1])
    return [x[0], np.tile(channels, positions)]


def untied_residual(index, node, call):
    """An add whose second operand is forgotten."""
    return index[call.self]


def reversed_linear(index, node, call):
    """Input features in the wrong order."""
    x, weight = index[call.input], index[call.weight]
    index.tie(x[-1], weight[1][::-1])
    index.contract(node, call.input, -1)
    if call.bias is not None:
        index.tie(weight[0], index[call.bias][0])
    return [*x[:-1], weight[0]]


def swapped_groups(index, node, call):
    """A grouped transposed conv whose output has its digits in the wrong order."""
    x, weight = index[call.input], index[call.weight]
    (out,) = index.new([call.groups * len(weight[1])])
    sizes = {"group": call.groups, "in": len(weight[0]) // call.groups, "out": len(weight[1])}
    views = [(x[1], ("group", "in")), (weight[0], ("group", "in")), (out, ("out", "group")), (weight[1], ("out",))]
    index.relate(node, sizes, *views)
    index.tie(out, index[call.bias][0])
    index.contract(node, call.input, 1)
    extents = [int(s) for s in node.meta["val"].shape[2:]]
    return [x[0], out, *index.new_frozen(extents, "spatial")]


def shifted_layer_norm(index, node, call):
    """Scale and shift in the wrong order against the features."""
    x = index[call.input]
    index.mix(node, x[-1:])
    for parameter in (call.weight, call.bias):
        index.tie(np.roll(x[-1], 1), index[parameter][0])
    return x


MUTANTS = [
    ("layer_norm", shifted_layer_norm, "layer norm"),
    ("cat", reversed_cat, "densenet"),
    ("batch_norm", rolled_norm, "resnet"),
    ("flatten", channels_last_flatten, "vgg"),
    ("add", untied_residual, "mobilenet"),
    ("linear", reversed_linear, "mlp"),
    ("conv_transpose2d", swapped_groups, "grouped transposed"),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("op", "mutant", "model"), MUTANTS, ids=[m[1].__name__ for m in MUTANTS])
def test_a_wrong_rule_is_caught(op, mutant, model, seed, cut_at_random, monkeypatch):
    cut_at_random(example(model), seed)  # the right rule passes
    monkeypatch.setitem(rules.RULES, op, mutant)
    with pytest.raises(VerifyError):
        cut_at_random(example(model), seed)


def test_a_missing_refit_names_the_node(cut_at_random, monkeypatch):
    monkeypatch.delitem(rules.REFITS, "conv2d")  # depthwise groups are no longer recounted
    with pytest.raises(VerifyError, match=r"aten\.conv2d\.default"):
        cut_at_random(example("mobilenet"), 0)


def removal(graph):
    """Every second group of each family goes."""
    index = IndexGraph(graph)
    groups = Groups(index)
    alive = np.ones(groups.count, bool)
    for family in groups.families:
        alive[family.groups[::2]] = False
    return index, groups.alive_atoms(alive)


def test_a_weight_cut_at_the_wrong_indices_is_caught():
    graph = example("mlp")
    whole = Snapshot.of(graph)
    index, alive = removal(graph)
    cut(index, alive)
    assert prove(whole, index, alive) <= TOLERANCE
    name = "2.weight"
    rewrite.set_weight(graph, name, graph.weight(name).flip(1))
    with pytest.raises(VerifyError, match="differs by"):
        prove(whole, index, alive)


def test_a_weight_cut_to_the_wrong_size_is_caught():
    graph = example("mlp")
    whole = Snapshot.of(graph)
    index, alive = removal(graph)
    cut(index, alive)
    rewrite.set_weight(graph, "2.bias", graph.weight("2.bias")[:-1])
    with pytest.raises(VerifyError, match=r"'2\.bias' was cut to"):
        prove(whole, index, alive)


def test_zero_weights_do_not_make_the_proof_vacuous(monkeypatch, cut_at_random):
    """With all weights zero every wrong map gives zero; the noise shows it."""
    monkeypatch.setitem(rules.RULES, "linear", reversed_linear)
    model = EXAMPLES["mlp"][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(VerifyError):
        cut_at_random(capture(model, torch.randn(2, 20)), 0)
