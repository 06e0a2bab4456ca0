"""Integer sums times their multipliers, in float32 ops that give exactly that."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...ir.errors import BuildError
from ...ir.integers.resizing import ONE
from ...ir.ops import arguments, describe, op_name
from .operators import is_integer_op
from .writer import Writer

_EXACT = 2**24  # float32 holds every integer up to this
_ONE = torch.tensor(1.0)
_aten = torch.ops.aten
_CONVS = {1: _aten.conv1d.default, 2: _aten.conv2d.default}
_TRANSPOSED = {1: _aten.conv_transpose1d.default, 2: _aten.conv_transpose2d.input}


def multiplied(writer: Writer, acc: fx.Node, multiplier: torch.Tensor, axis: int, *, quantized: bool) -> fx.Node:
    """f32(acc) * multiplier. `acc` is an int32 node of the integer graph.

    quantized   a quantize_linear follows: onnxruntime has an integer kernel of a conv or matmul then only. Its result
                is that product, though the float ops written here would round otherwise
    """
    call, name = arguments(acc), op_name(acc)
    if (
        name in _FUSED
        and (quantized or name == "linear_int32")
        and not (name == "sum_pool2d_int32" and _is_whole(call))
    ):
        return _FUSED[name](writer, call, multiplier)
    acc, moves = seen_through_moves(acc)
    counted = _COUNTED[op_name(acc)](writer, acc, arguments(acc))
    return writer.times_each(move(writer, counted, moves), multiplier, axis)


def seen_through_moves(acc: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """(the integer op that made these sums, the calls that have moved them since, in order)."""
    moves = []
    while not is_integer_op(acc):
        moves.append(acc)
        acc = acc.all_input_nodes[0]
    return acc, moves[::-1]


def move(writer: Writer, value: fx.Node, moves: list[fx.Node]) -> fx.Node:
    """The same calls on a float value."""
    for node in moves:
        value = writer.call(node.target, value, *node.args[1:], **node.kwargs)
    return value


def as_before(writer: Writer, value: fx.Node, acc: fx.Node) -> fx.Node:
    """A linear layer's value in the shape it had: it is computed as a matrix, for which alone ONNX has a bias."""
    wanted = acc.meta["val"].shape
    if len(wanted) == value.meta["val"].ndim:
        return value
    unknown = [dim for dim, extent in enumerate(wanted) if not isinstance(extent, int)]
    extents: list[Any] = [extent if isinstance(extent, int) else -1 for extent in wanted]
    if len(unknown) > 1:
        source = writer.value(arguments(acc).input)
        for dim in unknown:
            extents[dim] = writer.call(_aten.sym_size.int, source, dim)
    return writer.call(_aten.reshape.default, value, extents)


# ---------------------------------------------------------------- what runtimes have integer kernels of


def _conv(writer: Writer, call: Any, multiplier: torch.Tensor) -> fx.Node:
    x, (weight, bias) = writer.operand(call.input), (writer.weight(n, multiplier) for n in (call.weight, call.bias))
    conv = _CONVS[call.weight.meta["val"].ndim - 2]
    return writer.call(conv, x, weight, bias, call.stride, call.padding, call.dilation, call.groups)


def _linear(writer: Writer, call: Any, multiplier: torch.Tensor) -> fx.Node:
    is_matrix = call.input.meta["val"].ndim == 2
    x = writer.operand(call.input) if is_matrix else writer.matrix(call.input, call.weight.meta["val"].shape[1])
    return writer.call(
        _aten.linear.default, x, writer.weight(call.weight, multiplier), writer.weight(call.bias, multiplier)
    )


def _sum_pool(writer: Writer, call: Any, multiplier: torch.Tensor) -> fx.Node:
    """A depthwise conv with ones: there are exact integer kernels of that, not of average pooling."""
    channels = call.q.meta["val"].shape[1]
    ones = writer.constant("ones", torch.ones(channels, 1, *call.kernel_size, dtype=torch.int8))
    weight, x = writer.weight(ones, multiplier.expand(channels).clone()), writer.operand(call.q)
    return writer.call(_aten.conv2d.default, x, weight, None, call.stride, call.padding, [1, 1], channels)


def _is_whole(call: Any) -> bool:
    """True for a pool with one window, all of the map."""
    return list(call.q.meta["val"].shape[2:]) == list(call.kernel_size) and not any(call.padding)


def _matmul(writer: Writer, call: Any, multiplier: torch.Tensor) -> fx.Node:
    writer.stored(call.right)
    left, right = writer.operand(call.left), writer.scaled(call.right, float(multiplier))
    return writer.call(_aten.matmul.default, left, right)


_FUSED: dict[str, Callable[[Writer, Any, torch.Tensor], fx.Node]] = {
    "conv_int32": _conv,
    "linear_int32": _linear,
    "matmul_int32": _matmul,
    "sum_pool2d_int32": _sum_pool,
}


# ---------------------------------------------------------------- what float32 counts


def _counted_conv(writer: Writer, acc: fx.Node, call: Any) -> fx.Node:
    conv, options = _CONVS[call.weight.meta["val"].ndim - 2], (call.stride, call.padding, call.dilation, call.groups)
    return _in_parts(writer, acc, call, 1, lambda *operands: writer.call(conv, *operands, *options))


def _counted_transposed(writer: Writer, acc: fx.Node, call: Any) -> fx.Node:
    conv = _TRANSPOSED[call.weight.meta["val"].ndim - 2]
    options = call.stride, call.padding, call.output_padding, call.groups, call.dilation
    return _in_parts(writer, acc, call, 0, lambda *operands: writer.call(conv, *operands, *options))


def _in_parts(writer: Writer, acc: fx.Node, call: Any, axis: int, conv: Callable[..., fx.Node]) -> fx.Node:
    """A conv of integers in float32, over as few parts of its input channels as keep sums exact.

    axis: of the weight's input channels. The parts are added in int32.
    """
    x, weight = writer.value(call.input), writer.graph.weight(call.weight)
    parts = _parts(weight, writer.graph.weight(call.bias), axis, call)
    if parts is None:
        what = f"{describe(acc)} has sums of more than {_EXACT:,}"
        raise BuildError("onnx", what, "float32 cannot count them and ONNX has no integer kernel", "keep it in float")
    if len(parts) == 1:
        return conv(x, writer.weight(call.weight, _ONE), writer.weight(call.bias, _ONE))
    total, start = None, 0
    for part in parts:
        end = start + part.shape[axis]
        some = writer.call(_aten.slice.Tensor, x, 1, start, end)
        bias = None if total is not None else writer.weight(call.bias, _ONE)
        value = conv(some, writer.weight(writer.constant("weight_part", part), _ONE), bias)
        integers = writer.call(_aten.to.dtype, value, torch.int32)
        total = integers if total is None else writer.call(_aten.add.Tensor, total, integers)
        start = end
    return writer.call(_aten.to.dtype, total, torch.float32)


def _parts(weight: torch.Tensor, bias: torch.Tensor, axis: int, call: Any) -> list[torch.Tensor] | None:
    ends = torch.iinfo(call.input.meta["val"].dtype)
    widest = max(ends.max - call.zero_point, call.zero_point - ends.min)
    for count in range(1, weight.shape[axis] + 1 if call.groups == 1 else 2):
        parts = [part.contiguous() for part in weight.tensor_split(count, dim=axis)]
        if all(_reach(part, axis, call.groups) * widest + float(bias.abs().max()) <= _EXACT for part in parts):
            return parts
    return None


def _reach(weight: torch.Tensor, axis: int, groups: int) -> float:
    """The largest sum of magnitudes that one output reads."""
    weight = weight.double().abs()
    if axis == 0:  # [in, out / groups, ...] of a transposed conv
        return float(weight.reshape(groups, -1, *weight.shape[1:]).sum(1).flatten(2).sum(2).max())
    return float(weight.flatten(1).sum(1).max())


def _counted_sum(writer: Writer, acc: fx.Node, call: Any) -> fx.Node:
    return _sum(writer, call.q, call.dim, call.keepdim)


def _counted_pool(writer: Writer, acc: fx.Node, call: Any) -> fx.Node:
    if _is_whole(call):
        return _sum(writer, call.q, [2, 3], True)
    channels = call.q.meta["val"].shape[1]
    _refuse_beyond(acc, math.prod(call.kernel_size))
    ones = writer.constant("ones", torch.ones(channels, 1, *call.kernel_size, dtype=torch.int8))
    options = None, call.stride, call.padding, [1, 1], channels
    return writer.call(_aten.conv2d.default, writer.value(call.q), writer.weight(ones, _ONE), *options)


def _sum(writer: Writer, q: fx.Node, dims: list[int], keepdim: bool) -> fx.Node:
    """In int32: OpenVINO adds values straight from an int8 DequantizeLinear up in 8 bits."""
    integers = writer.call(_aten.to.dtype, writer.value(q), torch.int32)
    total = writer.call(_aten.sum.dim_IntList, integers, dims, keepdim, dtype=torch.int32)
    return writer.call(_aten.to.dtype, total, torch.float32)


def _refuse_beyond(acc: fx.Node, count: int) -> None:
    if count * 255 > _EXACT:
        what = f"{describe(acc)} can add up to {count * 255:,}"
        raise BuildError("onnx", what, f"float32 counts to {_EXACT:,}", "keep it in float")


def _counted_matmul(writer: Writer, acc: fx.Node, call: Any) -> fx.Node:
    _refuse_beyond(acc, call.left.meta["val"].shape[-1] * 255)
    return writer.call(_aten.matmul.default, writer.value(call.left), writer.value(call.right))


def _counted_bilinear(writer: Writer, acc: fx.Node, call: Any) -> fx.Node:
    """Its sums have 30 bits: they are computed in int32."""
    integers = writer.call(_aten.to.dtype, writer.value(call.q), torch.int32)
    for dim, positions, weights in ((2, call.rows, call.row_weights), (3, call.columns, call.column_weights)):
        integers = _mixed(writer, integers, dim, writer.graph.weight(positions), writer.graph.weight(weights))
    return writer.call(_aten.to.dtype, integers, torch.float32)


def _mixed(writer: Writer, x: fx.Node, dim: int, positions: torch.Tensor, weights: torch.Tensor) -> fx.Node:
    shape = [-1 if d == dim else 1 for d in range(4)]
    next_ones = (positions + 1).clamp(max=int(x.meta["val"].shape[dim]) - 1)
    sides = []
    for name, at, weight in (("first", positions, ONE - weights), ("second", next_ones, weights)):
        read = writer.call(_aten.index_select.default, x, dim, writer.constant(f"{name}_position", at.clone()))
        weight = writer.constant(f"{name}_weight", weight.reshape(shape))
        sides.append(writer.call(_aten.mul.Tensor, read, weight))
    return writer.call(_aten.add.Tensor, *sides)


def _counted_mul(writer: Writer, acc: fx.Node, call: Any) -> fx.Node:
    return writer.call(_aten.mul.Tensor, writer.value(call.left), writer.value(call.right))


_COUNTED: dict[str, Callable[[Writer, fx.Node, Any], fx.Node]] = {
    "conv_int32": _counted_conv,
    "conv_transpose_int32": _counted_transposed,
    "sum_int32": _counted_sum,
    "sum_pool2d_int32": _counted_pool,
    "mul_int32": _counted_mul,
    "upsample_bilinear2d_int32": _counted_bilinear,
    "matmul_int32": _counted_matmul,
}
