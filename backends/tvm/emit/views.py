"""Reshapes: one of another is a single one, which costs nothing; TVM would fuse two of them into a copy."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import fx
from tvm import relax

from ....ir.ops import is_op, op_name

if TYPE_CHECKING:
    from ..relax import Emitter

_VIEWS = ("view", "reshape", "flatten", "unflatten")


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """TVM's form of a reshape, of what it is in the end a reshape of. False for other calls."""
    if not is_op(node, *_VIEWS):
        return False
    emitter.others[op_name(node)] += 1
    value = emitter.convert(node)
    source = _reshaped_from(emitter, value)
    emitter.values[node] = value if source is None else reshaped(emitter, source, list(value.ty.shape))
    return True


def reshaped(emitter: Emitter, value: relax.Expr, extents: Sequence[Any]) -> relax.Expr:
    """The value in other dims, read from what it is a reshape of."""
    source = _reshaped_from(emitter, value)
    source = value if source is None else source
    if list(map(str, source.ty.shape)) == list(map(str, extents)):
        return source
    return emitter.builder.emit(relax.op.reshape(source, list(extents)))


def _reshaped_from(emitter: Emitter, value: relax.Expr) -> relax.Expr | None:
    call: Any = emitter.builder.lookup_binding(value) if isinstance(value, relax.Var) else None
    is_one = isinstance(call, relax.Call) and getattr(call.op, "name", "") == "relax.reshape"
    return call.args[0] if is_one else None
