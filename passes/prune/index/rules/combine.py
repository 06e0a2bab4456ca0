"""Joining and taking apart along a dim: concatenations, splits, slices, padding."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch
from torch import fx

from .....ir.ops import op_name
from ..constraints import Constraints, extents
from ..relation import Dim, Dims, NoRule
from .table import Call, refit, replace_dim, rule


@rule("cat", "concat")
def concatenate(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Offsets only: the joined dim is the inputs' dims one after the other."""
    inputs = [index[x] for x in call.tensors if extents(x) != [[0]]]  # torch lets an empty vector join anything
    at = call.dim % len(inputs[0])
    for x in inputs[1:]:
        index.align(replace_dim(inputs[0], at), replace_dim(x, at))
    return replace_dim(inputs[0], at, np.concatenate([x[at] for x in inputs]))


@rule("stack")
def stack(index: Constraints, node: fx.Node, call: Call) -> Dims:
    inputs = [index[x] for x in call.tensors]
    for x in inputs[1:]:
        index.align(inputs[0], x)
    at = call.dim % (len(inputs[0]) + 1)
    return [*inputs[0][:at], *index.new_frozen([len(inputs)], "they count stacked tensors"), *inputs[0][at:]]


SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")


@rule(*SPLITS)
def split(index: Constraints, node: fx.Node, call: Call) -> list[Dims]:
    x = index[call.self]
    at = call.dim % len(x)
    ends = np.cumsum([shape[at] for shape in extents(node)])
    return [replace_dim(x, at, part) for part in np.split(x[at], ends[:-1])]


@refit(*SPLITS)
def split_sizes(cut, node: fx.Node, call: Call) -> None:
    """Whatever the form of the split, its parts now have sizes of their own."""
    at = call.dim % len(cut.dims(call.self))
    if cut.is_cut(cut.dims(call.self)[at]):
        sizes = [cut.count(part[at]) for part in cut.all_dims(node)]
        cut.recast(node, torch.ops.aten.split_with_sizes.default, (call.self, sizes, at))


def _span(node: fx.Node, call: SimpleNamespace) -> slice:
    if op_name(node) == "slice":
        bounds = slice(call.start, call.end, call.step)
    else:
        bounds = slice(call.start, call.start + call.length)
    for bound in (bounds.start, bounds.stop):
        _number(bound)
    return bounds


@rule("slice", "narrow")
def take_range(index: Constraints, node: fx.Node, call: Call) -> Dims:
    x = index[call.self]
    at = call.dim % len(x)
    return replace_dim(x, at, x[at][_span(node, call)])


@refit("slice", "narrow")
def range_bounds(cut, node: fx.Node, call: Call) -> None:
    x = cut.dims(call.self)
    at = call.dim % len(x)
    if not cut.is_cut(x[at]):
        return
    first, last, step = _span(node, call).indices(len(x[at]))
    if step != 1:
        return cut.select(node, call.self, at, np.arange(first, last, step))
    start, length = cut.count(x[at][:first]), cut.count(x[at][first:last])
    cut.set(node, "start", start)
    if op_name(node) == "slice":
        cut.set(node, "end", start + length)
    else:
        cut.set(node, "length", length)


@rule("select")
def select(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """The one index that is read stays."""
    x = index[call.self]
    at = call.dim % len(x)
    if isinstance(call.index, fx.Node):
        raise NoRule("its index is symbolic")
    index.freeze([x[at][call.index % len(x[at])][None]], "select reads them by position")
    return replace_dim(x, at)


@refit("select")
def selected(cut, node: fx.Node, call: Call) -> None:
    dim: Dim = cut.dims(call.self)[call.dim % len(cut.dims(call.self))]
    if cut.is_cut(dim):
        cut.set(node, "index", cut.count(dim[: call.index % len(dim)]))


@rule("unbind")
def unbind(index: Constraints, node: fx.Node, call: Call) -> list[Dims]:
    x = index[call.self]
    index.freeze([x[call.dim]], "unbind reads them by position")
    return [replace_dim(x, call.dim % len(x)) for _ in extents(node)]


@rule("index_select")
def choose(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """A constant index renames: the chosen indices are those of the input, in another order or several times."""
    x = index[call.self]
    at = call.dim % len(x)
    positions = index.constant(call.index)
    if positions is None:
        index.freeze([x[at]], "they are chosen by an index that is computed")
        return replace_dim(x, at, *index.new_frozen([extents(node)[0][at]], "they are chosen by position"))
    return replace_dim(x, at, x[at][positions])


@refit("index_select")
def chosen(cut, node: fx.Node, call: Call) -> None:
    at = call.dim % len(cut.dims(call.self))
    if cut.is_cut(cut.dims(call.self)[at]):
        cut.select(node, call.self, at, cut.index.constant(call.index))


@rule("flip")
def reverse(index: Constraints, node: fx.Node, call: Call) -> Dims:
    x = index[call.self]
    flipped = {d % len(x) for d in call.dims}
    return [dim[::-1] if d in flipped else dim for d, dim in enumerate(x)]


@rule("roll")
def roll(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """The last `shift` indices come first. Without dims a roll is of the flattened tensor."""
    x = list(index[call.self])
    if not call.dims:
        index.freeze(x, "roll reads them by position")
        return x
    for at, shift in zip(call.dims, call.shifts, strict=True):
        if not index.is_fixed(x[at]):
            x[at] = np.roll(x[at], _number(shift))
    return x


@refit("roll")
def shifts(cut, node: fx.Node, call: Call) -> None:
    x = cut.dims(call.self)
    if any(cut.is_cut(x[at]) for at in call.dims):
        moved = [cut.count(x[at][len(x[at]) - s % len(x[at]) :]) for at, s in zip(call.dims, call.shifts, strict=True)]
        cut.set(node, "shifts", moved)


def _number(value: int | fx.Node) -> int:
    if isinstance(value, fx.Node):
        raise NoRule("its bounds are symbolic")
    return value


def _margins(call: Call, rank: int) -> Iterator[tuple[int, int, int]]:
    """(dim, before, after) of each padded dim; the arguments count from the last dim."""
    for step, (before, after) in enumerate(zip(call.pad[::2], call.pad[1::2], strict=True)):
        if (before, after) != (0, 0):
            yield rank - 1 - step, before, after


def _is_plain(call: Call) -> bool:
    return getattr(call, "mode", "constant") == "constant" and all(isinstance(v, int) and v >= 0 for v in call.pad)


@rule("pad", "constant_pad_nd")
def pad(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Padded positions are atoms of their own: a zero-padded shortcut meets the channels that it is added to."""
    x = index[call.self]
    result = list(x)
    for at, before, after in _margins(call, len(x)):
        if _is_plain(call):
            low, high = index.new([before, after])
            result[at] = np.concatenate([low, x[at], high])
        else:
            index.freeze([x[at]], "they are cropped or padded with their own values")
            result[at] = index.new_frozen([extents(node)[0][at]], "they are padded with their own values")[0]
    return result


@refit("pad", "constant_pad_nd")
def pad_widths(cut, node: fx.Node, call: Call) -> None:
    if not _is_plain(call):
        return
    widths, result = list(call.pad), cut.dims(node)
    for at, before, after in _margins(call, len(result)):
        step = 2 * (len(result) - 1 - at)
        widths[step] = cut.count(result[at][:before])
        widths[step + 1] = cut.count(result[at][len(result[at]) - after :])
    cut.set(node, "pad", widths)
