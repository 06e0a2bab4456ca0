"""Ops that treat every element alone: arithmetic, activations, comparisons, copies, dropout, constants."""

import numpy as np
from torch import fx

from ..constraints import Constraints, extents
from ..relation import Dims
from .table import Call, refit, replace_dim, rule

# Every op that PyTorch tags as pointwise has this rule too.
UNTAGGED = ("pointwise", "hardswish", "relu6", "where", "copy", "fill", "zero", "floor_divide", "__and__", "__or__")


@rule(*UNTAGGED)
def pointwise(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Dims aligned from the last one; equal extents are tied, an extent of 1 is broadcast and adds nothing."""
    inputs = [index[source] for source in index.tensor_inputs(node)]
    (shape,) = extents(node)
    result: Dims = []
    for position, extent in zip(range(-len(shape), 0), shape, strict=True):
        same = [x[position] for x in inputs if len(x) >= -position and len(x[position]) == extent]
        same.sort(key=lambda dim: not index.is_fixed(dim))  # what meets a dim that stays is one
        for other in same[1:]:
            index.tie(same[0], other)
        result += same[:1] or (index.new([extent]) if extent > 1 else [index.one()])
    return result


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def drop(index: Constraints, node: fx.Node, call: Call) -> Dims:
    return index[call.input]


@rule(
    "clone",
    "contiguous",
    "to",
    "_to_copy",
    "type_as",
    "detach",
    "alias",
    "lift_fresh_copy",
    "zeros_like",
    "ones_like",
    "full_like",
)
def copy(index: Constraints, node: fx.Node, call: Call) -> Dims:
    return index[node.all_input_nodes[0]]


@rule("glu")
def gated(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Half of the channels gate the other half."""
    x = index[call.self]
    at = call.dim % len(x)
    values, gates = np.split(x[at], 2)
    index.tie(values, gates)
    return replace_dim(x, at, values)


@rule("arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm", "tril_indices", "triu_indices")
def enumerated(index: Constraints, node: fx.Node, call: Call) -> Dims:
    return index.new_frozen(extents(node)[0], "they are made of their positions")


@rule("tril", "triu")
def triangle(index: Constraints, node: fx.Node, call: Call) -> Dims:
    x = index[call.self]
    index.freeze(x[-2:], "they are masked by position")
    return x


@rule("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine")
def fake_quantize(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Scales and zero points follow the channel axis, or are one number for the tensor."""
    x = index[call.self]
    if hasattr(call, "axis"):
        for parameter in (call.scale, call.zero_point):
            index.tie(x[call.axis], index[parameter][0])
    return x


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor")
def constant(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """A tensor of one number is as prunable as what it meets."""
    return index.new(extents(node)[0])


@refit("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def constant_size(cut, node: fx.Node, call: Call) -> None:
    cut.resize(node, "size", cut.dims(node))
