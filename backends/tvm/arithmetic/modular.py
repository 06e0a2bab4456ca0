"""Vectors of int32 that wrap around, modulo 2**32.

TVM tells LLVM that sums and products of int32 never overflow (nsw). These are LLVM's predicated operations with every
lane on: the same instructions, without that promise.
"""

from __future__ import annotations

from typing import Any

from .tir import T


def added(one: Any, other: Any, lanes: int) -> Any:
    """one + other."""
    return _applied("add", one, other, lanes)


def subtracted(one: Any, other: Any, lanes: int) -> Any:
    """one - other."""
    return _applied("sub", one, other, lanes)


def scaled(value: Any, factor: int, lanes: int) -> Any:
    """value * factor, for any whole number."""
    least = (factor + 2**31) % 2**32 - 2**31
    return _applied("mul", value, T.broadcast(T.int32(least), lanes), lanes)


def _applied(operation: str, one: Any, other: Any, lanes: int) -> Any:
    every_lane = T.broadcast(T.bool(True), lanes)
    return T.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.vp.{operation}", one, other, every_lane, T.uint32(lanes))
