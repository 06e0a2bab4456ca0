"""Plain float images to packed bytes, one row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic import Integers, modular
from ..arithmetic.rounding import ROUNDER, nearest, with_rounder
from ..arithmetic.tir import T
from .builder import Index, Kernel, Parameters, Vector, View
from .requantize import Constant, Steps
from .shapes import ToIntegers, round_up

FEW = 4  # channels whose bytes fill one int32
ROUNDER_BITS = int(np.float32(ROUNDER).view(np.int32))


def quantize_row(
    kernel: Kernel, spec: ToIntegers, arithmetic: Integers, given: Parameters, image: Index, row: Index
) -> None:
    """Images of few channels go from registers to memory, others by way of a row of bytes."""
    if spec.channels <= FEW and spec.width >= arithmetic.lanes:
        _few_channels(kernel, spec, arithmetic, given, image, row)
    else:
        _many_channels(kernel, spec, arithmetic, given, image, row)


def _few_channels(
    kernel: Kernel, spec: ToIntegers, arithmetic: Integers, given: Parameters, image: Index, row: Index
) -> None:
    """A vector of pixels at a time; the last one begins early enough to end with the row, and does some again."""
    lanes, source, target = arithmetic.lanes, given.sources[0].at(image), given.target.at(image)
    grid, words = Steps(lanes, given.weights[0]), round_up(spec.channels, lanes) // FEW  # int32 of a pixel
    per_store = lanes // words  # pixels

    def pixels(column: Index) -> None:
        planes = [(channel * spec.height + row) * spec.width + column for channel in range(spec.channels)]
        (word,) = kernel.registers(1, lanes, "int32")
        word.value = _in_words(grid, arithmetic, [source.vector(place, lanes) for place in planes])
        nothing = T.broadcast(T.int32(0), lanes)
        for first in range(0, lanes, per_store):
            spread = [first + i // words if i % words == 0 else lanes for i in range(lanes)]
            stored = word.value if words == 1 else T.Shuffle([word.value, nothing], spread)
            place = (row * spec.width + column + first) * (words * FEW)
            target.store(place, T.reinterpret(stored, dtype=f"{arithmetic.activation}x{lanes * FEW}"), lanes * FEW)

    with kernel.loop(spec.width // lanes) as i:
        pixels(i * lanes)
    if spec.width % lanes:
        pixels(spec.width - lanes)


def _many_channels(
    kernel: Kernel, spec: ToIntegers, arithmetic: Integers, given: Parameters, image: Index, row: Index
) -> None:
    """A row of every plane is quantized by vectors of pixels into bytes, which then go to their pixels."""
    lanes, pitch, kind = arithmetic.lanes, round_up(spec.channels, arithmetic.lanes), arithmetic.activation
    source, target = given.sources[0].at(image), given.target.at(image)
    bytes_of_row = kernel.workspace(spec.channels * spec.width, kind)
    whole, rest = divmod(spec.width, lanes)
    with kernel.loop(spec.channels) as channel:
        line, place = (channel * spec.height + row) * spec.width, channel * spec.width
        if whole:
            with kernel.loop(whole) as i:
                value = quantized(Steps(lanes, given.weights[0]), arithmetic, source.vector(line + i * lanes, lanes))
                bytes_of_row.store(place + i * lanes, T.cast(value, f"{kind}x{lanes}"), lanes)
        if rest:
            with kernel.loop(rest, whole * lanes) as column:
                one = quantized_one(given.weights[0], source, line + column)
                bytes_of_row.store(place + column, T.cast(one, kind))
    with kernel.loop(spec.width) as column:
        with kernel.loop(spec.channels) as channel:
            pixel = (row * spec.width + column) * pitch
            target.store(pixel + channel, bytes_of_row.scalar(channel * spec.width + column))
        if pitch > spec.channels:
            with kernel.loop(pitch - spec.channels, spec.channels) as channel:
                target.store((row * spec.width + column) * pitch + channel, T.cast(0, kind))


def quantized(grid: Steps, arithmetic: Integers, real: Vector) -> Vector:
    """float32 as int32, of which the lowest byte is the integer in memory."""
    return _with_rounder(grid, arithmetic, real) + T.broadcast(_zero_point(grid), grid.lanes)


def _in_words(grid: Steps, arithmetic: Integers, reals: list[Vector]) -> Vector:
    """Vectors of float32, one for each channel of a pixel, as the bytes in memory, side by side in int32.

    Bytes counted from the least one are summed, each times a power of 256, modulo 2**32. What is added to all of them
    is added once.
    """
    lanes, least = grid.lanes, int(np.iinfo(arithmetic.activation).min)
    ones = sum(1 << 8 * i for i in range(len(reals)))
    offset = _zero_point(grid) - T.int32(least + ROUNDER_BITS)
    word = modular.scaled(T.broadcast(offset, lanes), ones, lanes)
    for i, real in enumerate(reals):
        steps = _with_rounder(grid, arithmetic, real)
        word = modular.added(word, T.shift_left(steps, T.broadcast(T.int32(8 * i), lanes)), lanes)
    signs = T.int32(np.uint32(ones * 0x80).view(np.int32) if least else 0)
    return word ^ T.broadcast(signs, lanes)


def _zero_point(grid: Steps) -> Any:
    return T.cast(grid.constant.scalar(int(Constant.ZERO_POINT)), "int32")


def _with_rounder(grid: Steps, arithmetic: Integers, real: Vector) -> Vector:
    """Steps from the zero point on as int32, plus `ROUNDER_BITS`."""
    lanes = grid.lanes
    unit, factor = _normal(grid.constant.scalar(int(Constant.SCALE)))
    low, high = (grid.constant.scalar(int(end)) * unit for end in (Constant.LOW, Constant.HIGH))
    # Held before it is divided: what is infinite, or far beyond the grid, has no remainder.
    held = arithmetic.between(_without_nan(real, lanes) * T.broadcast(factor, lanes), low, high)
    return T.reinterpret(with_rounder(_quotient(held, unit, lanes), lanes), dtype=f"int32x{lanes}")


def _normal(scale: Any) -> tuple[Any, Any]:
    """(unit, factor) of a positive scale: unit = scale * factor, a number of 2**-23 to 4, and factor a power of two."""
    exponent = T.reinterpret(scale, dtype="int32") >> T.int32(23)
    factor = T.reinterpret(
        (T.int32(254) - T.max(T.min(exponent, T.int32(253)), T.int32(1))) << T.int32(23), dtype="float32"
    )
    return scale * factor, factor


def _quotient(x: Vector, unit: Any, lanes: int) -> Vector:
    """x / unit as a division rounds it, in a fifth of its time or less.

    The product with the reciprocal is off by up to two units in the last place; one remainder, which a fused
    multiply-add gives, leaves less than one, and a second one the nearest number (Markstein, "Computation of elementary
    functions on the IBM RISC System/6000 processor", 1990).
    """

    def fused(a: Vector, b: Vector, c: Vector) -> Vector:
        return T.call_llvm_pure_intrin(f"float32x{lanes}", "llvm.fma", a, b, c)

    reciprocal, minus = (T.broadcast(each, lanes) for each in (T.float32(1) / unit, T.float32(0) - unit))
    quotient = x * reciprocal
    for _ in range(2):
        quotient = fused(fused(quotient, minus, x), reciprocal, quotient)
    return quotient


def quantized_one(constants: View, source: View, place: Index) -> Any:
    real = _without_nan(source.scalar(place), 1) / constants.scalar(int(Constant.SCALE))
    low, high = constants.scalar(int(Constant.LOW)), constants.scalar(int(Constant.HIGH))
    steps = nearest(T.min(T.max(real, low), high), 1)
    return T.cast(steps + constants.scalar(int(Constant.ZERO_POINT)), "int32")


def _without_nan(real: Vector, lanes: int) -> Vector:
    """Zero for NaN, which is told by its bits: TVM takes `x == x` for true."""

    def spread(value: Any) -> Vector:
        return value if lanes == 1 else T.broadcast(value, lanes)

    bits = T.reinterpret(real, dtype="int32" if lanes == 1 else f"int32x{lanes}")
    is_nan = (bits & spread(T.int32(0x7FFFFFFF))) > spread(T.int32(0x7F800000))
    return T.Select(is_nan, spread(T.float32(0)), real)
