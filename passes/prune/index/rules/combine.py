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
    if isinstance(bounds.start, fx.Node) or isinstance(bounds.stop, fx.Node):
        raise NoRule("its bounds are symbolic")
    return bounds


@rule("slice", "narrow")
def take_range(index: Constraints, node: fx.Node, call: Call) -> Dims:
    x = index[call.self]
    at, bounds = call.dim % len(x), _span(node, call)
    if bounds.step not in (None, 1):
        index.freeze([x[at]], "they are read with a stride")
    return replace_dim(x, at, x[at][bounds])


@refit("slice", "narrow")
def range_bounds(cut, node: fx.Node, call: Call) -> None:
    dim: Dim = cut.dims(call.self)[call.dim % len(cut.dims(call.self))]
    if not cut.is_cut(dim):
        return
    first, last, _ = _span(node, call).indices(len(dim))
    start, length = cut.count(dim[:first]), cut.count(dim[first:last])
    cut.set(node, "start", start)
    if op_name(node) == "slice":
        cut.set(node, "end", start + length)
    else:
        cut.set(node, "length", length)


@rule("select", "unbind", "index_select", "flip", "roll")
def take_positions(index: Constraints, node: fx.Node, call: Call) -> Dims | list[Dims]:
    """A dim that is read by position stays whole."""
    x = index[call.self]
    chosen = [call.dim] if hasattr(call, "dim") else call.dims or range(len(x))  # a roll without dims is of all
    index.freeze([x[d] for d in chosen], f"{op_name(node)} reads them by position")
    if op_name(node) in ("flip", "roll"):
        return x
    at = call.dim % len(x)
    if op_name(node) == "unbind":
        return [replace_dim(x, at) for _ in extents(node)]
    if op_name(node) == "select":
        return replace_dim(x, at)
    return replace_dim(x, at, *index.new_frozen([extents(node)[0][at]], "they are chosen by position"))


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
