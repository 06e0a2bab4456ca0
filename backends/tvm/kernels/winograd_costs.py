"""What Winograd's steps cost on each kind of CPU, beside its products."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..arithmetic import Arithmetic, NeonFp16, NeonFp32


@dataclass(frozen=True)
class Costs:
    """Times in multiply-adds of one lane at peak rate.

    transform: for each place of a tile and each of its channels; read: to read a byte of weights that is not in the
    nearest caches, times the lanes; weight: to transform a weight of 3x3 taps to 6x6 while the kernel runs, None where
    that is not done; worth_it: share of the direct kernel's time below which the estimate is believed.
    windows: (kernel, stride) that are computed so, and the inputs of a tile, per side, that each may have.
    parts: whether the outputs are cut into a part for each core where weights are larger than the map; padding: whether
    the direct kernel's time was taken for that of all taps, those on padding too, which it leaves out.
    """

    transform: float
    read: float
    worth_it: float
    windows: dict[tuple[int, int], tuple[int, ...]]
    weight: float | None = None
    parts: bool = False
    padding: bool = True


# Measured on AVX-512.
_X86 = Costs(transform=6, read=3 / 4, worth_it=0.9, windows={(3, 1): (4, 6)})
# Model cycles of a Cortex-A72 and A76 (llvm-mca). Weights come from memory at about 4 GB/s on a Raspberry Pi 4: 1.5
# multiply-adds of its four lanes per byte at 1.5 GHz; at 9 GB/s on a Raspberry Pi 5: 4 of its sixteen in float16.
_NEON = Costs(
    transform=8,
    read=3 / 8,
    worth_it=0.9,
    windows={(3, 1): (4, 6), (3, 2): (4, 5, 6), (5, 2): (4, 6), (7, 2): (6,)},
    weight=90,
    parts=True,
    padding=False,
)
# Half precision transforms no weights: each of them would be rounded twice more. With strides it keeps to the smallest
# tiles: the error of larger ones is 2.3 times the direct kernel's, that of all others at most 1.3 times.
_NEON_HALF = replace(_NEON, read=1 / 2, windows={**_NEON.windows, (3, 2): (4,)}, weight=None)
COSTS: dict[type[Arithmetic], Costs] = {NeonFp32: _NEON, NeonFp16: _NEON_HALF}


def costs(arithmetic: Arithmetic) -> Costs:
    """Those of an arithmetic."""
    return COSTS.get(type(arithmetic), _X86)
