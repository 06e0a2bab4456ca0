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
    result: dict[int, Dim] = {i: index.one() for i, extent in enumerate(shape) if extent == 1}
    old = [dim for dim in index[node.all_input_nodes[0]] if len(dim) > 1]
    todo = [i for i, extent in enumerate(shape) if extent > 1]
    while old:
        block, places = _next_block(old, todo, shape)
        new = block if len(block) == len(places) == 1 else _regroup(index, node, block, [shape[i] for i in places])
        result.update(zip(places, new, strict=True))
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


def _regroup(index: Constraints, node: fx.Node, old: Dims, shape: list[int]) -> Dims:
    """New dims for a block, related to the old ones over their common factors, cut where a dim of either side ends."""
    ends = [[1, *(int(e) for e in np.cumprod(extents))] for extents in ([len(dim) for dim in old], shape)]
    cuts = sorted({*ends[0], *ends[1]})
    if any(high % low for low, high in pairwise(cuts)):
        why = "they are reshaped without common factors"
        index.freeze(old, why)
        return index.new_frozen(shape, why)
    sizes = {f"factor {i}": high // low for i, (low, high) in enumerate(pairwise(cuts))}
    names = list(sizes)
    before, after = ([names[cuts.index(low) : cuts.index(high)] for low, high in pairwise(end)] for end in ends)
    return index.renumber(node, sizes, list(zip(old, before, strict=True)), after)


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


@rule("movedim", "moveaxis")
def move(index: Constraints, node: fx.Node, call: Call) -> Dims:
    x = index[call.self]
    source, destination = ([v] if isinstance(v, int) else v for v in (call.source, call.destination))
    moved = {d % len(x): s % len(x) for s, d in zip(source, destination, strict=True)}
    rest = iter(i for i in range(len(x)) if i not in moved.values())
    return [x[moved[i] if i in moved else next(rest)] for i in range(len(x))]


@rule("transpose", "swapaxes", "swapdims", "t", "mT", "adjoint", "numpy_T")
def transpose(index: Constraints, node: fx.Node, call: Call) -> Dims:
    result = list(index[node.all_input_nodes[0]])
    if len(result) > 1:
        first, second = [v for v in node.args[1:3] if isinstance(v, int)] or (-1, -2)
        result[first], result[second] = result[second], result[first]
    return result


@rule("expand", "expand_as", "broadcast_to")
def expand(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """A broadcast dim is new and as prunable as what it meets."""
    (shape,) = extents(node)
    x = index[call.self]
    lead = len(shape) - len(x)
    kept = [i >= lead and len(x[i - lead]) == extent for i, extent in enumerate(shape)]
    return [x[i - lead] if keep else index.new([shape[i]])[0] for i, keep in enumerate(kept)]


@refit("expand", "broadcast_to")
def expand_size(cut, node: fx.Node, call: Call) -> None:
    cut.resize(node, "size", cut.dims(node))


@rule("repeat", "tile")
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
