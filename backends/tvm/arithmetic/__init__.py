"""How each kind of CPU multiplies: one module per instruction set, rows of the table below."""

from __future__ import annotations

from collections.abc import Collection

from .arm import NeonFp32
from .arm_half import NeonFp16
from .arm_sdot import Sdot
from .arm_smmla import Smmla
from .arm_smull import Smull
from .armv7 import Armv7Fp32, Vmull
from .base import Arithmetic, Integers, WholeSum
from .stored_weights import StoredWeights, with_stored_weights
from .x86 import X86Fp32
from .x86_integers import Madd, Vnni
from .x86_matrix import Amx, MatrixUnit

FP32: dict[str, type[Arithmetic]] = {"x86_64": X86Fp32, "aarch64": NeonFp32, "arm": Armv7Fp32}


def fp32(triple: str, lanes: int, registers: int, cores: int = 1, cache: int = 512 << 10) -> Arithmetic:
    """The fp32 arithmetic of a target.

    triple: LLVM triple, of which the first part counts; lanes, registers: of its vector unit; cores: threads that a
    kernel may use; cache: bytes of activations to keep near one core.
    """
    return FP32[triple.split("-")[0]](lanes, registers, cores, cache)


# The processor feature that gives an arithmetic of half precision, which has twice the lanes of float32.
FP16: dict[str, type[Arithmetic]] = {"asimdhp": NeonFp16}


def fp16(
    features: Collection[str], lanes: int, registers: int, cores: int = 1, cache: int = 512 << 10
) -> Arithmetic | None:
    """The half-precision arithmetic of a target with these features; None where there is none.

    lanes: of float32.
    """
    found = next((kind for feature, kind in FP16.items() if feature in features), None)
    return found(2 * lanes, registers, cores, cache) if found else None


# The processor feature that gives an integer arithmetic, best first.
INTEGERS: dict[str, type[Integers]] = {
    "amx_int8": Amx,
    "avx512_vnni": Vnni,
    "avx_vnni": Vnni,
    "avx512bw": Madd,
    "avx2": Madd,
    "i8mm": Smmla,
    "asimddp": Sdot,
    "asimd": Smull,
    "neon": Vmull,
}


def integers(
    features: Collection[str], lanes: int, registers: int, cores: int = 1, cache: int = 512 << 10
) -> Integers | None:
    """The 8-bit arithmetic of a target with these features; None where there is none."""
    found = next((kind for feature, kind in INTEGERS.items() if feature in features), None)
    return found(lanes, registers, cores, cache) if found else None


__all__ = [
    "FP16",
    "FP32",
    "INTEGERS",
    "Amx",
    "Arithmetic",
    "Armv7Fp32",
    "Integers",
    "Madd",
    "MatrixUnit",
    "NeonFp16",
    "NeonFp32",
    "Sdot",
    "Smmla",
    "Smull",
    "StoredWeights",
    "Vmull",
    "Vnni",
    "WholeSum",
    "X86Fp32",
    "fp16",
    "fp32",
    "integers",
    "with_stored_weights",
]
