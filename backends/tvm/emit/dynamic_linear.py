"""Linear layers whose input is quantized at run time: an integer product between a range and a conversion."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import tvm
from torch import fx
from tvm import relax, te

from ....ir.integers.dynamic import DROPPED_BITS, HIGH, LOW, SMALLEST_SCALE
from ....ir.ops import arguments, is_op
from ..kernels import Dense, Dequantize, pack
from .rows import Rows

if TYPE_CHECKING:
    from ..relax import Emitter


def emit(emitter: Emitter, node: fx.Node) -> relax.Expr:
    """The call on plain values; the product is a kernel where the target has one for integers."""
    call = arguments(node)
    x, fixed = emitter.values[call.input], is_fixed(call.input)
    return linear(emitter, node, x, call.weight, call.weight_scale, call.bias, fixed=fixed)


def linear(
    emitter: Emitter,
    node: fx.Node,
    x: relax.Expr,
    weight: fx.Node,
    weight_scale: fx.Node,
    bias: fx.Node | None,
    *,
    fixed: bool,
) -> relax.Expr:
    """`planish::linear_dynamic` of any value, on behalf of a node.

    fixed  whether the value is known now. TVM computes then what follows from it, on a machine that has no vectors:
           LLVM ends the process over our kernels there.
    """
    keep, has_kernel = emitter.builder.emit, emitter.integers is not None and not fixed
    scale, zero = _grid(emitter, x)
    levels = relax.op.add(relax.op.round(relax.op.divide(x, scale)), zero)
    levels = relax.op.clip(levels, float(LOW), float(HIGH))
    sums = (_kernel if has_kernel else _plain)(emitter, node, levels, zero, emitter.array(weight))
    factors = keep(relax.op.multiply(scale, emitter.constant(emitter.array(weight_scale))))
    real = relax.op.multiply(relax.op.astype(sums, "float64"), relax.op.astype(factors, "float64"))
    if bias is not None:
        real = relax.op.add(real, relax.op.astype(emitter.constant(emitter.array(bias)), "float64"))
    return keep(relax.op.astype(real, "float32"))


def is_fixed(node: fx.Node) -> bool:
    """True for a value that no input of the model decides; its extents may."""
    left, seen = [node], {node}
    for value in left:  # grows while it is walked
        if value.op == "placeholder":
            return False
        reads = [] if is_op(value, "sym_size") else [n for n in value.all_input_nodes if n not in seen]
        seen.update(reads)
        left.extend(reads)
    return True


def _grid(emitter: Emitter, x: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """Scale and zero point of a value, both float32 []."""
    keep, nothing = emitter.builder.emit, _float(0.0)
    low, high = keep(relax.op.minimum(relax.op.min(x), nothing)), keep(relax.op.maximum(relax.op.max(x), nothing))
    span = relax.op.divide(relax.op.subtract(high, low), _float(HIGH - LOW))
    scale = emitter.builder.emit_te(_shortened, keep(relax.op.maximum(span, _float(SMALLEST_SCALE))))
    zero = relax.op.add(_float(LOW), relax.op.round(relax.op.divide(relax.op.negative(low), scale)))
    return scale, keep(relax.op.clip(zero, float(LOW), float(HIGH)))


def _shortened(scale: te.Tensor) -> te.Tensor:
    """The next number up with 10 significant bits, by way of its own bits."""
    mask = (1 << DROPPED_BITS) - 1

    def up(*at):
        bits = tvm.tirx.reinterpret("int32", scale(*at)) + tvm.tirx.const(mask, "int32")
        return tvm.tirx.reinterpret("float32", bits & tvm.tirx.const(~mask, "int32"))

    return te.compute(scale.shape, up, "short_scale")


def _plain(emitter: Emitter, node: fx.Node, levels: relax.Expr, zero: relax.Expr, weight: np.ndarray) -> relax.Expr:
    """The sums as float32, in loops of TVM's own."""
    columns = np.ascontiguousarray(weight.astype(np.int32).T)
    centered = relax.op.astype(relax.op.subtract(levels, zero), "int32")
    sums = relax.op.matmul(centered, emitter.constant(columns), out_dtype="int32")
    return emitter.builder.emit(relax.op.astype(sums, "float32"))


def _kernel(emitter: Emitter, node: fx.Node, levels: relax.Expr, zero: relax.Expr, weight: np.ndarray) -> relax.Expr:
    """The sums as float32, by the kernel of integer linear layers.

    Its sums begin with a bias, which takes the zero point's part away: that is computed before each call.
    """
    arithmetic, keep = emitter.integers, emitter.builder.emit
    assert arithmetic is not None
    outputs, inputs = weight.shape
    shift = _float(emitter.storage.shift(torch.int8))
    whole = relax.op.astype(relax.op.add(levels, shift), "int32")
    source = keep(relax.op.astype(whole, emitter.storage.of(torch.int8)))
    leading = list(source.ty.shape)[:-1]
    is_known = all(isinstance(extent, tvm.tirx.IntImm) for extent in leading)
    rows = Rows(math.prod(map(int, leading)) if is_known else None, leading)
    spec = Dense(rows.count, inputs, outputs, Dequantize())
    packed, begin, one = pack(spec, arithmetic, weight, None, np.ones(outputs, np.float32), None, 0)
    taken = np.zeros(len(begin), np.int32)
    taken[:outputs] = weight.astype(np.int32).sum(1)
    stored_zero = relax.op.astype(relax.op.add(zero, shift), "int32")
    bias = keep(relax.op.multiply(relax.op.negative(stored_zero), emitter.constant(taken)))
    first = rows.flat(emitter, source, inputs)
    return rows.unflat(emitter, emitter.kernel(node, spec, [first], [packed, bias, one], arithmetic), outputs)


def _float(value: float) -> relax.Expr:
    return relax.const(np.float32(value))
