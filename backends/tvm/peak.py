"""What this machine can do at most, measured: multiply-accumulates of an arithmetic, and bytes copied, per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import tvm

from ..target import Target
from .arithmetic import Amx, Arithmetic
from .arithmetic.tir import T
from .arithmetic.x86_matrix import CONFIGURATION
from .build import tvm_target
from .kernels.builder import Kernel, Vector
from .kernels.microkernel import Accumulators

STEPS = 1 << 16  # passes of the inner loop in one call: some hundred microseconds
CALLS = 30
ACCUMULATORS = 8  # of 16 registers: as many hide the latency of a multiply-add


@cache
def multiply_accumulates(arithmetic: Arithmetic, target: Target) -> float:
    """Per second and core: one k step after another into independent accumulators, operands in registers.

    The best of some calls: other work on the machine only slows it. Where there is a matrix unit, that of its tiles.
    """
    if isinstance(arithmetic, Amx):
        return _matrix_unit(arithmetic, target)
    pixels = ACCUMULATORS * arithmetic.registers // 16
    function = _chain(arithmetic, pixels).with_attr("global_symbol", "peak")
    run = tvm.compile(function, target=tvm_target(target))["peak"]
    lanes, unroll = arithmetic.lanes, arithmetic.unroll
    shapes = [(unroll, arithmetic.activation), (_weights(arithmetic), arithmetic.weight)]
    shapes += [(pixels * lanes, arithmetic.accumulator)] * 2
    arrays = [tvm.runtime.tensor(np.ones(size, dtype)) for size, dtype in shapes]
    return STEPS * pixels * lanes * unroll / _least(lambda: run(*arrays))


def _matrix_unit(arithmetic: Amx, target: Target) -> float:
    """Whole tiles into half of the registers, the other half holds operands."""
    unit, steps = arithmetic.matrix, STEPS // 16
    totals = unit.registers // 2
    with Kernel() as kernel:
        words = kernel.argument("words", (CONFIGURATION,), "int32")
        sums = kernel.argument("sums", (unit.rows * unit.rows,), "int32")
        unit.configure(words, [(unit.rows, unit.row_bytes)] * unit.registers)
        for register in range(unit.registers):
            unit.load(register, T.address_of(sums.buffer[0]), unit.row_bytes)
        with kernel.loop(steps):
            for total in range(totals):
                unit.multiply(total, totals + total % 2, unit.registers - 1 - total % 2)
        unit.store(0, T.address_of(sums.buffer[0]), unit.row_bytes)
        unit.release()
    run = tvm.compile(kernel.prim_func.with_attr("global_symbol", "peak"), target=tvm_target(target))["peak"]
    arrays = [tvm.runtime.tensor(np.zeros(size, np.int32)) for size in (CONFIGURATION, unit.rows * unit.rows)]
    products = unit.rows * unit.rows * unit.row_bytes
    return steps * totals * products / _least(lambda: run(*arrays))


def bytes_copied(footprint: int) -> float:
    """Bytes read and written per second by one core that copies half of `footprint` bytes to the other half."""
    source = np.ones(max(footprint // 2, 64), np.uint8)
    target = np.zeros_like(source)
    return 2 * source.nbytes / _least(lambda: np.copyto(target, source))


def _chain(arithmetic: Arithmetic, pixels: int) -> Any:
    """A kernel that adds the same products again and again; accumulators start apart, so that none are merged."""
    lanes, unroll = arithmetic.lanes, arithmetic.unroll
    with Kernel() as kernel:
        source = kernel.argument("source", (unroll,), arithmetic.activation)
        weights = kernel.argument("weights", (_weights(arithmetic),), arithmetic.weight)
        starts = kernel.argument("starts", (pixels * lanes,), arithmetic.accumulator)
        target = kernel.argument("target", (pixels * lanes,), arithmetic.accumulator)
        sums = Accumulators(kernel, arithmetic, pixels, 1)
        sums.start(starts, *[p * lanes for p in range(pixels)])
        with kernel.loop(STEPS):
            sums.accumulate(source, [0] * pixels, weights, 0, unroll)

        def store(pixel: int, _: int, value: Vector) -> None:
            target.store(pixel * lanes, value, lanes)

        sums.finish(store)
    return kernel.prim_func


def _weights(arithmetic: Arithmetic) -> int:
    return arithmetic.unroll * arithmetic.lanes


def _least(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return min(taken)
