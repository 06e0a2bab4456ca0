"""Activations and epilogues as vector expressions. An activation that is not in the table is not fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..arithmetic import Arithmetic
from ..arithmetic.rounding import with_rounder, without_rounder
from ..arithmetic.tir import T
from .builder import Vector, broadcast
from .epilogues import Epilogue


def _same(x: Vector, number: float, lanes: int) -> Vector:
    """A number in every lane, in the dtype of a vector."""
    return T.broadcast(T.cast(number, "float16" if _is_half(x) else "float32"), lanes)


def _is_half(x: Vector) -> bool:
    return str(x.ty).startswith("float16")


def _clip(x: Vector, arithmetic: Arithmetic, low: float, high: float) -> Vector:
    lanes = arithmetic.lanes
    return arithmetic.lesser(_same(x, high, lanes), arithmetic.greater(_same(x, low, lanes), x))


def _relu(x: Vector, arithmetic: Arithmetic) -> Vector:
    return arithmetic.greater(_same(x, 0.0, arithmetic.lanes), x)


def exponential(x: Vector, lanes: int) -> Vector:
    """e**x to 2 ulp for -87 <= x <= 88.3, the same below, infinity above, without libm.

    x = n ln 2 + r with |r| <= ln 2 / 2; e**r by its Taylor polynomial of degree 7; 2**n by building the exponent.
    """
    # Ends come first so that comparisons, false for NaN, select x.
    x = T.min(broadcast(89.0, lanes), T.max(broadcast(-87.0, lanes), x))
    sum_ = with_rounder(x * broadcast(1.4426950408889634, lanes), lanes)
    n = without_rounder(sum_, lanes)
    # ln 2 in two parts: the first is exact in few bits, so n times it is exact too.
    r = x - n * broadcast(0.693359375, lanes) + n * broadcast(2.12194440e-4, lanes)
    result = broadcast(1 / 5040, lanes)
    for coefficient in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        result = result * r + broadcast(coefficient, lanes)
    whole = T.reinterpret(sum_, dtype=f"int32x{lanes}") + T.broadcast(T.int32(127), lanes)
    exponent = whole << T.broadcast(T.int32(23), lanes)
    return result * T.reinterpret(exponent, dtype=f"float32x{lanes}")


def _sigmoid(x: Vector, arithmetic: Arithmetic) -> Vector:
    lanes = arithmetic.lanes
    one = broadcast(1.0, lanes)
    return one / (one + exponential(broadcast(0.0, lanes) - x, lanes))


def _hardsigmoid(x: Vector, arithmetic: Arithmetic) -> Vector:
    lanes = arithmetic.lanes
    return _clip(x + _same(x, 3.0, lanes), arithmetic, 0.0, 6.0) * _same(x, 1 / 6, lanes)


def _tanh(x: Vector, arithmetic: Arithmetic) -> Vector:
    lanes = arithmetic.lanes
    return broadcast(2.0, lanes) * _sigmoid(x + x, arithmetic) - broadcast(1.0, lanes)


def _gelu(x: Vector, arithmetic: Arithmetic) -> Vector:
    """x * Phi(x) with erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7)."""
    lanes = arithmetic.lanes
    one, zero = broadcast(1.0, lanes), broadcast(0.0, lanes)
    z = T.max(x, zero - x) * broadcast(0.7071067811865476, lanes)
    t = one / (one + broadcast(0.3275911, lanes) * z)
    series = broadcast(1.061405429, lanes)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + broadcast(coefficient, lanes)
    tail = broadcast(0.5, lanes) * series * t * exponential(zero - z * z, lanes)  # 1 - Phi(|x|)
    return x * T.Select(x < zero, tail, one - tail)


ACTIVATIONS: dict[str, Callable[..., Vector]] = {
    "relu": _relu,
    "relu6": lambda x, arithmetic: _clip(x, arithmetic, 0.0, 6.0),
    "clip": _clip,
    "hardswish": lambda x, arithmetic: x * _hardsigmoid(x, arithmetic),
    "hardsigmoid": _hardsigmoid,
    "sigmoid": _sigmoid,
    "silu": lambda x, arithmetic: x * _sigmoid(x, arithmetic),
    "tanh": _tanh,
    "gelu": _gelu,
}
# Those that float16 computes as well as float32 does: no sum and no series in them loses bits.
_EXACT_IN_HALF = ("relu", "relu6", "clip", "hardswish", "hardsigmoid")


def _activated(epilogue: Epilogue, value: Vector, arithmetic: Arithmetic) -> Vector:
    """The activation of a vector, in its dtype."""
    assert epilogue.activation is not None
    function, bounds = ACTIVATIONS[epilogue.activation], epilogue.bounds or ()
    if not _is_half(value) or epilogue.activation in _EXACT_IN_HALF:
        return function(value, arithmetic, *bounds)
    lanes = arithmetic.lanes
    return T.cast(function(T.cast(value, f"float32x{lanes}"), arithmetic, *bounds), f"float16x{lanes}")


def finish(epilogue: Epilogue, value: Vector, arithmetic: Arithmetic, residual: Any = None) -> Vector:
    """Apply an epilogue to a vector (`residual`: the vector to add, if the epilogue has one)."""
    if epilogue.residual == "before":
        value = value + residual
    if epilogue.activation is not None:
        value = _activated(epilogue, value, arithmetic)
    if epilogue.residual == "after":
        value = value + residual
    return value
