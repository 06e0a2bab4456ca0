"""Matrix products of two activations as kernels: in float32, and in integers where both sides are quantized."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx
from tvm import relax

from ....ir.ops import arguments, is_op, only_user
from ..kernels import BatchedMatmul, Dequantize, Requantize, Tokens
from .fuse_integers import IntegerSum
from .integer_numbers import constants_of, stored_zero
from .transpositions import SWAPPED_HEADS, permuted, swaps_heads, without_swapped_heads, without_transposition

if TYPE_CHECKING:
    from ..relax import Emitter


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """A float32 matmul or bmm of two activations with the same leading dims; False leaves it to TVM."""
    if not is_op(node, "matmul", "bmm") or node.meta["val"].dtype != torch.float32:
        return False
    left, right = node.args[:2]
    form = _form(emitter, node, left, right)
    if form is None:
        return False
    spec, sides = form
    _keep(emitter, node, spec, emitter.kernel(node, spec, sides, []))
    return True


def emit_integers(emitter: Emitter, kernel: IntegerSum) -> bool:
    """The same for matmul_int32 and what makes integers or floats of its sums, with one factor for all of them."""
    call, finish = arguments(kernel.node), arguments(kernel.finish)
    dequantized = is_op(kernel.finish, "dequantize_int32")
    factor = finish.scale if dequantized else finish.multiplier
    assert emitter.integers is not None
    if factor.meta["val"].ndim or not emitter.integers.takes_any_byte:
        return False
    form = _form(emitter, kernel.result, call.left, call.right, Dequantize() if dequantized else Requantize())
    if form is None:
        return False
    spec, sides = form
    zeros = [stored_zero(emitter, *side) for side in ((call.left, call.zero_left), (call.right, call.zero_right))]
    factors = np.full(spec.output.width, emitter.number(factor), np.float32)
    arrays = [factors, None if dequantized else constants_of(emitter, kernel), tuple(zeros)]
    value = emitter.product_kernel(kernel.result, spec, sides, arrays, emitter.integers)
    _keep(emitter, kernel.result, spec, value)
    return True


def _form(
    emitter: Emitter, result: fx.Node, left: Any, right: Any, *epilogue: Any
) -> tuple[BatchedMatmul, list[relax.Expr]] | None:
    """The kernel, and its operands in four dims; None where it takes no such product."""
    extents = [_fixed(side) for side in (left, right)]
    if None in extents or left.op == "get_attr" or right.op == "get_attr" or not _alike(left, right):
        return None
    (heads, rows, steps), (_, _, outputs) = (e for e in extents if e is not None)
    first, left_swapped = without_swapped_heads(emitter, _in_four_dims(emitter, left))
    second, transposed, right_swapped = without_transposition(emitter, _in_four_dims(emitter, right))
    matrix = (outputs, steps) if transposed else (steps, outputs)
    spec = BatchedMatmul(
        emitter.batch(result),
        Tokens(heads, rows, steps, left_swapped),
        Tokens(heads, *matrix, right_swapped),
        Tokens(heads, rows, outputs, result.meta["val"].ndim == 4 and swaps_heads(only_user(result))),
        transposed,
        *epilogue,
    )
    return spec, [first, second]


def _fixed(node: Any) -> tuple[int, int, int] | None:
    """(heads, rows, columns) of [batch, heads, rows, columns] or [batch, rows, columns] whose extents are known."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.ndim not in (3, 4):
        return None
    if any(isinstance(extent, torch.SymInt) for extent in value.shape[1:]):
        return None
    heads, rows, columns = (1, *map(int, value.shape[1:]))[-3:]
    return heads, rows, columns


def _alike(left: fx.Node, right: fx.Node) -> bool:
    """Whether all dims but the matrices' own are the same: nothing is broadcast."""
    leading = [[str(extent) for extent in side.meta["val"].shape[:-2]] for side in (left, right)]
    return leading[0] == leading[1]


def _in_four_dims(emitter: Emitter, node: fx.Node) -> relax.Expr:
    value = emitter.values[node]
    if len(value.ty.shape) == 4:
        return value
    batch, *matrix = value.ty.shape
    before, transposed = _transposed_matrix(emitter, value)
    if transposed:  # in four dims, so that the kernel finds it
        four = emitter.builder.emit(relax.op.reshape(before, [batch, 1, *matrix[::-1]]))
        return emitter.builder.emit(relax.op.permute_dims(four, [0, 1, 3, 2]))
    return emitter.builder.emit(relax.op.reshape(value, [batch, 1, *matrix]))


def _transposed_matrix(emitter: Emitter, value: relax.Expr) -> tuple[relax.Expr, bool]:
    """What a value [batch, rows, columns] is the transposition of, if it is one."""
    found = permuted(emitter, value)
    return (found[0], True) if found and found[1] == (0, 2, 1) else (value, False)


def _keep(emitter: Emitter, node: fx.Node, spec: BatchedMatmul, value: relax.Expr) -> None:
    """The value in the dims that its readers know; a transposition that follows finds it as it lies."""
    if spec.output.tokens_first:
        value = emitter.builder.emit(relax.op.permute_dims(value, list(SWAPPED_HEADS)))
    elif node.meta["val"].ndim == 3:
        batch, _, *matrix = value.ty.shape
        value = emitter.builder.emit(relax.op.reshape(value, [batch, *matrix]))
    emitter.values[node] = value
