"""Layer norm and softmax over the last dim as kernels of our own."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ....ir.ops import arguments, op_name
from ..kernels import LayerNorm, Softmax
from .rows import Rows

if TYPE_CHECKING:
    from ..relax import Emitter


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """Emit the call if a kernel takes it; False leaves it to TVM."""
    rule, value = _RULES.get(op_name(node)), node.meta.get("val")
    if rule is None or not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return False
    return value.ndim > 1 and not isinstance(value.shape[-1], torch.SymInt) and rule(emitter, node)


def _layer_norm(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    weights = [w for w in (call.weight, call.bias) if w is not None]
    width = int(node.meta["val"].shape[-1])
    if [int(extent) for extent in call.normalized_shape] != [width] or any(w.op != "get_attr" for w in weights):
        return False
    arrays = [None if w is None else emitter.array(w) for w in (call.weight, call.bias)]
    return _keep(emitter, node, call.input, lambda rows: LayerNorm(rows, width, float(call.eps)), arrays)


def _softmax(emitter: Emitter, node: fx.Node) -> bool:
    call, value = arguments(node), node.meta["val"]
    if call.dim % value.ndim != value.ndim - 1 or getattr(call, "dtype", None) not in (None, torch.float32):
        return False
    return _keep(emitter, node, call.self, lambda rows: Softmax(rows, int(value.shape[-1])), [])


def _keep(
    emitter: Emitter, node: fx.Node, read: Any, spec: Callable[[int | None], LayerNorm | Softmax], arrays: list
) -> bool:
    if read.meta["val"].dtype != torch.float32:
        return False
    width, source = int(node.meta["val"].shape[-1]), emitter.values[read]
    rows = Rows.of(node, source)
    flat = rows.flat(emitter, source, width)
    emitter.values[node] = rows.unflat(emitter, emitter.product_kernel(node, spec(rows.count), [flat], arrays), width)
    return True


_RULES: dict[str, Callable[[Emitter, fx.Node], bool]] = {
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "_softmax": _softmax,
}
