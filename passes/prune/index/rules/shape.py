"""Ops that rename, regroup or repeat dims."""

from itertools import pairwise

import numpy as np
from torch import fx

from ..constraints import Constraints, extents
from ..relation import Dim, Dims, NoRule
from .table import Call, refit, rule

RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as")


@rule(*RESHAPES)
def reshape(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Blocks of dims with equal products; a block of one dim on each side is a rename."""
    (shape,) = extents(node)
    if 0 in shape:
        return index.new_frozen(shape, "the tensor is empty")
    result: dict[int, Dim] = {i: index.new([1])[0] for i, extent in enumerate(shape) if extent == 1}
    old = [dim for dim in index[node.all_input_nodes[0]] if len(dim) > 1]
    todo = [i for i, extent in enumerate(shape) if extent > 1]
    while old:
        block, places = _next_block(old, todo, shape)
        rename = len(block) == len(places) == 1
        new = block if rename else index.new([shape[i] for i in places])
        result.update(zip(places, new, strict=True))
        if not rename:
            _regroup(index, node, block, new)
    return [result[i] for i in range(len(shape))]


def _next_block(old: Dims, todo: list[int], shape: list[int]) -> tuple[Dims, list[int]]:
    """Take the shortest run of old dims and of new places that have the same product."""
    block, places = [old.pop(0)], [todo.pop(0)]
    have, want = len(block[0]), shape[places[0]]
    while have != want:
        if have < want:
            block.append(old.pop(0))
            have *= len(block[-1])
        else:
            places.append(todo.pop(0))
            want *= shape[places[-1]]
    return block, places


def _regroup(index: Constraints, node: fx.Node, old: Dims, new: Dims) -> None:
    """Relate both sides over their common factors, cut where a dim of either side ends."""
    ends = [[1, *(int(e) for e in np.cumprod([len(dim) for dim in dims]))] for dims in (old, new)]
    cuts = sorted({*ends[0], *ends[1]})
    if any(high % low for low, high in pairwise(cuts)):
        index.freeze([*old, *new], "they are reshaped without common factors")
        return
    factors = [f"factor {i}" for i in range(len(cuts) - 1)]
    sizes = {f: high // low for f, (low, high) in zip(factors, pairwise(cuts), strict=True)}
    views = [
        (dim, factors[cuts.index(low) : cuts.index(high)])
        for dims, bounds in zip((old, new), ends, strict=True)
        for dim, (low, high) in zip(dims, pairwise(bounds), strict=True)
    ]
    index.relate(node, sizes, *views)


@refit("view", "_unsafe_view")
def view_size(cut, node: fx.Node, call: Call) -> None:
    cut.resize(node, "size", cut.dims(node))


@refit("reshape")
def reshape_size(cut, node: fx.Node, call: Call) -> None:
    cut.resize(node, "shape", cut.dims(node))


@refit("unflatten")
def unflatten_sizes(cut, node: fx.Node, call: Call) -> None:
    at = call.dim % len(cut.dims(call.self))
    cut.resize(node, "sizes", cut.dims(node)[at : at + len(call.sizes)])


@rule("permute")
def permute(index: Constraints, node: fx.Node, call: Call) -> Dims:
    return [index[call.self][d] for d in call.dims]


@rule("transpose", "swapaxes", "t", "mT", "adjoint", "numpy_T")
def transpose(index: Constraints, node: fx.Node, call: Call) -> Dims:
    result = list(index[node.all_input_nodes[0]])
    if len(result) > 1:
        first, second = [v for v in node.args[1:3] if isinstance(v, int)] or (-1, -2)
        result[first], result[second] = result[second], result[first]
    return result


@rule("expand", "expand_as")
def expand(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """A broadcast dim is new and as prunable as what it meets."""
    (shape,) = extents(node)
    x = index[call.self]
    lead = len(shape) - len(x)
    kept = [i >= lead and len(x[i - lead]) == extent for i, extent in enumerate(shape)]
    return [x[i - lead] if keep else index.new([shape[i]])[0] for i, keep in enumerate(kept)]


@refit("expand")
def expand_size(cut, node: fx.Node, call: Call) -> None:
    cut.resize(node, "size", cut.dims(node))


@rule("repeat")
def repeat(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Copies of the whole dim, one after the other."""
    (shape,) = extents(node)
    x = index[call.self]
    lead = len(shape) - len(x)
    tiled = [np.tile(dim, extent // len(dim)) for dim, extent in zip(x, shape[lead:], strict=True)]
    return [*index.new_frozen(shape[:lead], "they count repeated copies"), *tiled]


@rule("repeat_interleave")
def repeat_each(index: Constraints, node: fx.Node, call: Call) -> Dims:
    if call.dim is None or not isinstance(call.repeats, int):
        raise NoRule("it repeats a flattened tensor, or each element its own number of times")
    x = list(index[call.self])
    x[call.dim] = np.repeat(x[call.dim], call.repeats)
    return x
