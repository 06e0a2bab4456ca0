"""How each kind of CPU multiplies: one module per instruction set, rows of the table below."""

from __future__ import annotations

from .arm import NeonFp32
from .base import Arithmetic
from .x86 import X86Fp32

FP32: dict[str, type[Arithmetic]] = {"x86_64": X86Fp32, "aarch64": NeonFp32}


def fp32(triple: str, lanes: int, registers: int, cores: int = 1, cache: int = 512 << 10) -> Arithmetic:
    """The fp32 arithmetic of a target.

    triple: LLVM triple, of which the first part counts; lanes, registers: of its vector unit; cores: threads that a
    kernel may use; cache: bytes of activations to keep near one core.
    """
    return FP32[triple.split("-")[0]](lanes, registers, cores, cache)


__all__ = ["FP32", "Arithmetic", "NeonFp32", "X86Fp32", "fp32"]
