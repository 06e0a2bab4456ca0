"""LSTMs whose inputs are quantized at run time: their steps one after the other, products by `dynamic_linear`."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm
from torch import fx
from tvm import relax

from ....ir.ops import arguments
from .dynamic_linear import is_fixed, linear

if TYPE_CHECKING:
    from ..relax import Emitter

MOST_STEPS = 64  # of all layers and directions: each is some ten calls of the program


def emit(emitter: Emitter, node: fx.Node) -> relax.Expr:
    """(outputs, last hidden state, last cell state), every step in calls of its own.

    Raises ValueError for a number of steps that is not known, or too many: then it stays in PyTorch.
    """
    call, keep = arguments(node), emitter.builder.emit
    batched, directions = call.input.meta["val"].ndim == 3, 2 if call.bidirectional else 1
    swapped = batched and call.batch_first
    x, (h, c) = emitter.values[call.input], (emitter.values[state] for state in call.state)
    x = keep(relax.op.permute_dims(x, [1, 0, 2])) if swapped else x
    count = len(call.weights) // 2
    _check_steps(x.ty.shape[0], count)
    last: tuple[list[relax.Expr], list[relax.Expr]] = ([], [])
    for layer in range(count // directions):
        sides = []
        for direction in range(directions):
            number = layer * directions + direction
            start = [_row(emitter, state, number) for state in (h, c)]
            outputs, *ends = _one_direction(emitter, node, x, start, number, backwards=bool(direction))
            sides.append(keep(relax.op.stack(outputs, axis=0)))
            for table, end in zip(last, ends, strict=True):
                table.append(end)
        x = keep(relax.op.concat(sides, axis=-1)) if len(sides) > 1 else sides[0]
    x = keep(relax.op.permute_dims(x, [1, 0, 2])) if swapped else x
    return relax.Tuple([x, *(keep(relax.op.stack(table, axis=0)) for table in last)])


def _one_direction(
    emitter: Emitter, node: fx.Node, x: relax.Expr, start: list[relax.Expr], number: int, *, backwards: bool
) -> tuple[list[relax.Expr], relax.Expr, relax.Expr]:
    """The output of every step in the order of x, and the last h and c, of one layer in one direction."""
    call, keep = arguments(node), emitter.builder.emit
    into_gates, from_state = range(2 * number, 2 * number + 2)

    def product(value: relax.Expr, which: int, fixed: bool) -> relax.Expr:
        bias = call.biases[which] if call.biases else None
        return linear(emitter, node, value, call.weights[which], call.scales[which], bias, fixed=fixed)

    fixed, state_fixed = is_fixed(call.input), is_fixed(call.state[0])  # a first state is zeros as a rule
    entering, (h, c) = product(x, into_gates, fixed), start
    steps = list(range(int(x.ty.shape[0])))
    outputs = {}
    for step in reversed(steps) if backwards else steps:
        gates = relax.op.add(_row(emitter, entering, step), product(h, from_state, state_fixed))
        state_fixed = fixed
        parts = keep(relax.op.split(keep(gates), 4, axis=-1))
        into, forget, new, out = (keep(relax.TupleGetItem(parts, part)) for part in range(4))
        fresh = relax.op.multiply(relax.op.sigmoid(into), relax.op.tanh(new))
        c = keep(relax.op.add(relax.op.multiply(relax.op.sigmoid(forget), c), fresh))
        h = outputs[step] = keep(relax.op.multiply(relax.op.sigmoid(out), relax.op.tanh(c)))
    return [outputs[step] for step in steps], h, c


def _row(emitter: Emitter, value: relax.Expr, number: int) -> relax.Expr:
    """value[number]"""
    row = emitter.builder.emit(relax.op.strided_slice(value, [0], [number], [number + 1]))
    return emitter.builder.emit(relax.op.squeeze(row, [0]))


def _check_steps(steps: relax.Expr, count: int) -> None:
    if not isinstance(steps, tvm.tirx.IntImm):
        raise ValueError("its number of steps is not known")
    if int(steps) * count > MOST_STEPS:
        raise ValueError(
            f"its {count} layers and directions take {int(steps)} steps each, more than {MOST_STEPS} in all"
        )
