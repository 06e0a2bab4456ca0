"""Rounding half to even by two additions: no slower than an instruction for it, which 32-bit ARM has not."""

from __future__ import annotations

from typing import Any

from .tir import T

ROUNDER = 1.5 * 2**23  # float32 has no fractions around it


def with_rounder(x: Any, lanes: int) -> Any:
    """x + ROUNDER, for |x| <= 2**22: its lowest bits are those of x as a whole number."""
    return x + _rounder(lanes)


def without_rounder(sum_: Any, lanes: int) -> Any:
    """The whole number that `with_rounder` found, as float32."""
    # By way of the bits: TVM takes x + y - y for x.
    bits = T.reinterpret(sum_, dtype=_kind("int32", lanes))
    return T.reinterpret(bits, dtype=_kind("float32", lanes)) - _rounder(lanes)


def nearest(x: Any, lanes: int) -> Any:
    """The nearest whole number, ties to even, for |x| <= 2**22."""
    return without_rounder(with_rounder(x, lanes), lanes)


def _rounder(lanes: int) -> Any:
    return T.float32(ROUNDER) if lanes == 1 else T.broadcast(T.float32(ROUNDER), lanes)


def _kind(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
