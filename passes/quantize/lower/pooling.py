"""Pooling over windows. In one dim it is pooling over maps of one row."""

import math
from dataclasses import dataclass

import torch
from torch import fx
from torch.nn import functional

from ....ir.ops import arguments, op_name
from .emitter import Emitter
from .products import per_dim
from .quantized import INT32_MAX, Grid, Quantized

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class _Windows:
    """Windows of one size, [vertical, horizontal].

    beyond    rows and columns that the last windows read past the padding (ceil_mode)
    divisors  what the sum in each window is divided by: a number, or one for each window [height, width]
    """

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    beyond: list[int]
    divisors: torch.Tensor


def average(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    """The integer form of avg_pool1d, avg_pool2d and their adaptive kin: exact sums, times the inverse of a divisor."""
    (source,) = inputs
    found = _adaptive(node) if op_name(node).startswith("adaptive") else _windows(node)
    if isinstance(found, str):
        return found
    if math.prod(found.kernel) * source.grid.widest > INT32_MAX:
        return f"its sums over {math.prod(found.kernel)} values can leave int32"
    values, zero, flat = source.node, source.grid.zero_point, _rank(node) == 1
    if any(found.beyond):
        ends = [0, found.beyond[1]] if flat else [0, found.beyond[1], 0, found.beyond[0]]
        values = emitter.move(_ATEN.constant_pad_nd.default, node, values, ends, zero)
    values = _as_map(emitter, node, values)
    acc = emitter.sums("sum_pool2d_int32", node, values, found.kernel, found.stride, found.padding, zero)
    acc = emitter.move(_ATEN.squeeze.dim, node, acc, -2) if flat else acc
    multiplier = (source.grid.scale / (found.divisors * grid.scale)).float()
    if multiplier.ndim == 0 or flat:
        return emitter.requantize(node, acc, multiplier.squeeze(), -1, grid)
    acc = emitter.move(_ATEN.flatten.using_ints, node, acc, -2, -1)
    pooled = emitter.requantize(node, acc, multiplier.flatten(), -1, grid)
    return emitter.move(_ATEN.unflatten.int, node, pooled, -1, list(multiplier.shape))


def maximum(emitter: Emitter, node: fx.Node, source: Quantized) -> fx.Node | str:
    """The integer form of max_pool1d and of adaptive_max_pool1d and 2d, which yield indices too."""
    call = arguments(node)
    if op_name(node).startswith("adaptive"):
        if any(user.args[1] != 0 for user in node.users):
            return "the indices of its maxima are read"
        found = _adaptive(node)
        if isinstance(found, str):
            return found
        options = found.kernel, found.stride, found.padding
    else:
        kernel, stride = (_pair(call.kernel_size, 1, 1), _pair(call.stride or call.kernel_size, 1, 1))
        options = kernel, stride, _pair(call.padding, 1, 0), _pair(call.dilation, 1, 1), call.ceil_mode
    values = _as_map(emitter, node, source.node)
    pooled = emitter.move(_ATEN.max_pool2d.default, node, values, *options)
    return emitter.move(_ATEN.squeeze.dim, node, pooled, -2) if _rank(node) == 1 else pooled


def _windows(node: fx.Node) -> _Windows | str:
    call, rank = arguments(node), _rank(node)
    kernel, padding = _pair(call.kernel_size, rank, 1), _pair(call.padding, rank, 0)
    stride = _pair(call.stride or call.kernel_size, rank, 1)
    if not call.ceil_mode and (call.count_include_pad or not any(padding)):
        divisor = getattr(call, "divisor_override", None) or math.prod(kernel)
        return _Windows(kernel, stride, padding, [0, 0], torch.tensor(float(divisor), dtype=torch.float64))
    extents = _extents(node)
    if extents is None:
        return "its windows have divisors of their own and its input's height or width is not known"
    ones = torch.ones(1, *extents, dtype=torch.float64)
    # Divisors show where the op averages a map of ones.
    means = node.target(ones.reshape(1, *extents[-rank:]), *node.args[1:], **node.kwargs)  # type: ignore[operator]
    means = means.reshape(1, -1, means.shape[-1])
    beyond = [
        max(0, (out - 1) * s + k - have - 2 * p)
        for out, s, k, have, p in zip(means.shape[1:], stride, kernel, extents, padding, strict=True)
    ]
    padded = functional.pad(ones, (0, beyond[1], 0, beyond[0]))
    counts = functional.avg_pool2d(padded, kernel, stride, padding, divisor_override=1)
    divisors = torch.round(counts / means)[0]
    same = bool((divisors == divisors[0, 0]).all())
    return _Windows(kernel, stride, padding, beyond, divisors[0, 0] if same else divisors)


def _adaptive(node: fx.Node) -> _Windows | str:
    extents, wanted = _extents(node), _pair(arguments(node).output_size, _rank(node), 1)
    if extents is None:
        return "its input's height or width is not known"
    if any(have % want for have, want in zip(extents, wanted, strict=True)):
        return f"its windows are not all of one size ({extents[-_rank(node) :]} to {wanted[-_rank(node) :]})"
    window = [have // want for have, want in zip(extents, wanted, strict=True)]
    return _Windows(window, window, [0, 0], [0, 0], torch.tensor(float(math.prod(window)), dtype=torch.float64))


def _rank(node: fx.Node) -> int:
    return 1 if op_name(node).endswith("1d") else 2


def _extents(node: fx.Node) -> list[int] | None:
    """Height and width of the input, a height of 1 where it has none; None where they are symbolic."""
    extents = node.all_input_nodes[0].meta["val"].shape[-_rank(node) :]
    if any(isinstance(extent, torch.SymInt) for extent in extents):
        return None
    return [1, *map(int, extents)][-2:]


def _pair(value: object, rank: int, above: int) -> list[int]:
    """[vertical, horizontal] of an option; `above` is the vertical one of an op in one dim."""
    return [above, *per_dim(value, rank)][-2:]


def _as_map(emitter: Emitter, node: fx.Node, values: fx.Node) -> fx.Node:
    return emitter.move(_ATEN.unsqueeze.default, node, values, -2) if _rank(node) == 1 else values
