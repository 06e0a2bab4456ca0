"""Operands that kernels read as they lie before a transposition, and transpositions that undo each other."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx
from tvm import relax

from ....ir.ops import arguments, is_op

if TYPE_CHECKING:
    from ..relax import Emitter

SWAPPED_HEADS = (0, 2, 1, 3)  # [batch, tokens, heads, width] from [batch, heads, tokens, width], and back
_SWAPPED_MATRIX = (0, 1, 3, 2)
_BOTH = (0, 2, 3, 1)


def without_swapped_heads(emitter: Emitter, value: relax.Expr) -> tuple[relax.Expr, bool]:
    """(what a value is the transposition of, True) where tokens and heads were swapped; else the value itself."""
    found = permuted(emitter, value)
    return (found[0], True) if found and found[1] == SWAPPED_HEADS else (value, False)


def without_transposition(emitter: Emitter, value: relax.Expr) -> tuple[relax.Expr, bool, bool]:
    """(the value before, whether its matrices were transposed, whether tokens and heads were swapped before)."""
    found = permuted(emitter, value)
    if found and found[1] == _BOTH:
        return found[0], True, True
    transposed = found is not None and found[1] == _SWAPPED_MATRIX
    before, swapped = without_swapped_heads(emitter, found[0] if found and transposed else value)
    return before, transposed, swapped


def swaps_heads(node: fx.Node | None) -> bool:
    """True for a call that does nothing but that."""
    return node is not None and _axes(node) == SWAPPED_HEADS


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """A transposition that undoes the one before it is no call. False for any other call."""
    axes = _axes(node)
    found = permuted(emitter, emitter.values[arguments(node).self]) if axes else None
    if axes is None or found is None or [found[1][axis] for axis in axes] != list(range(len(axes))):
        return False
    emitter.values[node] = found[0]
    return True


def _axes(node: fx.Node) -> tuple[int, ...] | None:
    """Where each dim of a transposition's result comes from; None for another call."""
    if not is_op(node, "transpose", "permute"):
        return None
    call, rank = arguments(node), node.meta["val"].ndim
    if is_op(node, "permute"):
        return tuple(dim % rank for dim in call.dims)
    axes = list(range(rank))
    axes[call.dim0], axes[call.dim1] = axes[call.dim1], axes[call.dim0]
    return tuple(axes)


def permuted(emitter: Emitter, value: relax.Expr) -> tuple[relax.Expr, tuple[int, ...]] | None:
    """(what a value is a permutation of, the axes); None where it is none."""
    if not isinstance(value, relax.Var):
        return None
    call: Any = emitter.builder.lookup_binding(value)
    if not isinstance(call, relax.Call) or getattr(call.op, "name", "") != "relax.permute_dims":
        return None
    attributes: Any = call.attrs
    return (call.args[0], tuple(map(int, attributes.axes))) if attributes.axes else None
