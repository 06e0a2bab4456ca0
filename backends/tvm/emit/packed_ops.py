"""Ops that work on packed activations, so that a CNN stays packed from its first conv to its classifier."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ....ir.ops import arguments, op_name
from ..kernels import Binary, GlobalMean, Pool, Unary, Window
from . import concatenation
from .fuse import activation, pair
from .tvm_ops import ELEMENTWISE

if TYPE_CHECKING:
    from ..relax import Emitter


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """Emit the call on packed values if there is a way; False leaves it to TVM on plain values."""
    rule = _RULES.get(op_name(node))
    value = node.meta.get("val")
    if rule is None or not isinstance(value, torch.Tensor):
        return False
    if value.dtype not in emitter.floats and (op_name(node) != "cat" or emitter.integers is None):
        return False
    return rule(emitter, node)


def _keep(emitter: Emitter, node: fx.Node, spec: Any, sources: list[fx.Node]) -> bool:
    inputs = [emitter.values.packed(source) for source in sources]
    emitter.values.set_packed(node, emitter.kernel(node, spec, inputs, []))
    return True


def _pool(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    source = call.self
    extents = emitter.packed_extents(source)
    if extents is None or call.ceil_mode or getattr(call, "divisor_override", None) is not None:
        return False
    kernel = pair(call.kernel_size)
    vertical, horizontal = pair(call.padding)
    shape = Window(
        kernel=kernel,
        stride=pair(call.stride) if call.stride else kernel,
        padding=(vertical, vertical, horizontal, horizontal),
        dilation=pair(getattr(call, "dilation", 1)),
    )
    mode = "max" if op_name(node) == "max_pool2d" else "mean"
    spec = Pool(*extents, shape, mode, count_padding=getattr(call, "count_include_pad", True))
    return _keep(emitter, node, spec, [source])


def _global_mean(emitter: Emitter, node: fx.Node) -> bool:
    """adaptive_avg_pool2d to one pixel, and mean over height and width."""
    call = arguments(node)
    source = call.self
    extents = emitter.packed_extents(source)
    if extents is None or not emitter.values.is_packed(source):
        return False
    if op_name(node) == "mean":
        if call.dim is None or sorted(d % 4 for d in call.dim) != [2, 3]:
            return False
        if not call.keepdim:
            mean = emitter.kernel(node, GlobalMean(*extents), [emitter.values.packed(source)], [])
            emitter.values[node] = emitter.without_pixels(mean, extents[3])
            return True
    elif list(call.output_size) != [1, 1]:
        return False
    return _keep(emitter, node, GlobalMean(*extents), [source])


def _binary(emitter: Emitter, node: fx.Node) -> bool:
    """add and mul of two tensors of one shape, or of a tensor and its per-channel factors [N, C, 1, 1]."""
    left, right = node.args[:2]
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)) or getattr(arguments(node), "alpha", 1) != 1:
        return False
    if not (emitter.values.is_packed(left) or emitter.values.is_packed(right)):
        return False
    extents = [emitter.packed_extents(n) for n in (left, right)]
    whole = emitter.packed_extents(node)
    if whole is None or any(e is None or n.op == "get_attr" for e, n in zip(extents, (left, right), strict=True)):
        return False
    if extents[0] != whole:
        left, right, extents = right, left, extents[::-1]
    per_channel = extents[1] == (whole[0], 1, 1, whole[3])
    if extents[0] != whole or (extents[1] != whole and not per_channel):
        return False
    spec = Binary(*whole, op_name(node), per_channel=per_channel and extents[1] != whole)
    return _keep(emitter, node, spec, [left, right])


def _unary(emitter: Emitter, node: fx.Node) -> bool:
    source = node.args[0]
    epilogue = activation(node)
    extents = emitter.packed_extents(node)
    if epilogue is None or extents is None or not emitter.values.is_packed(source):
        return False
    assert isinstance(source, fx.Node)
    return _keep(emitter, node, Unary(*extents, epilogue), [source])


def _elementwise(emitter: Emitter, node: fx.Node) -> bool:
    """A converter that looks at each element alone works on the packed tensor as it is."""
    source = node.args[0]
    if not emitter.values.is_packed(source) or emitter.packed_extents(node) is None:
        return False
    emitter.others[op_name(node)] += 1
    emitter.values.set_packed(node, ELEMENTWISE[op_name(node)](emitter, node, emitter.values.packed))
    return True


_RULES: dict[str, Callable[[Emitter, fx.Node], bool]] = {
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _global_mean,
    "mean": _global_mean,
    "add": _binary,
    "mul": _binary,
    "cat": concatenation.emit,
    **dict.fromkeys(
        ("relu", "relu6", "hardtanh", "clamp", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh"), _unary
    ),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
}
