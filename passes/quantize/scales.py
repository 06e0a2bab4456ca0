"""From ranges to scales and zero points. All arithmetic in float64, results as float32 holds them."""

import math
from dataclasses import dataclass

import numpy as np
import torch

# Below this a scale's reciprocal, and the product of two scales, would leave float32's normal range.
SMALLEST_SCALE = 2.0**-60
# A dead channel's own scale would be near zero, and its integer bias and requantization factor without bounds.
_CHANNEL_FLOOR = 2.0**-20
# Half of int32 for the bias, the other half for the accumulated products.
_LARGEST_BIAS = 2.0**30
_SCALE_BITS = 10
_FLOAT32_BITS = 24


@dataclass(frozen=True)
class Levels:
    """The integers quant_min..quant_max, and whether the zero point has to stand in their middle."""

    quant_min: int
    quant_max: int
    symmetric: bool = False

    def grid(self, low: float, high: float) -> tuple[float, int]:
        """Scale and zero point that cover low..high."""
        return (centred if self.symmetric else affine)(low, high, self.quant_min, self.quant_max)

    def grids(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`grid` for many ranges at once, the scales not shortened: float64 [ranges] each."""
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        if self.symmetric:
            middle = _middle(self.quant_min, self.quant_max)
            scale = np.maximum(-low / (middle - self.quant_min), high / (self.quant_max - middle))
            return np.maximum(scale, SMALLEST_SCALE), np.full_like(scale, middle)
        scale = np.maximum((high - low) / (self.quant_max - self.quant_min), SMALLEST_SCALE)
        return scale, np.clip(self.quant_min + np.rint(-low / scale), self.quant_min, self.quant_max)


def affine(low: float, high: float, quant_min: int, quant_max: int) -> tuple[float, int]:
    """Scale and zero point that cover low..high, widened to hold zero exactly.

    real = scale * (q - zero_point). A range that is zero alone gets scale 1, for nothing better is known. The scale has
    few bits (see `short`), and no value of the range is further than half a step from a level.
    Source: Jacob et al., section 2.1, CVPR 2018, arXiv:1712.05877.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return 1.0, min(max(0, quant_min), quant_max)
    steps = quant_max - quant_min
    scale = short(max((high - low) / steps, SMALLEST_SCALE), steps)
    zero_point = quant_min + round(-low / scale)
    return scale, min(max(zero_point, quant_min), quant_max)


def centred(low: float, high: float, quant_min: int, quant_max: int) -> tuple[float, int]:
    """`affine` with the zero point in the middle: 0 for int8, 128 for uint8. Half of the levels are on either side.

    Source: Krishnamoorthi, section 2.2, 2018, arXiv:1806.08342.
    """
    middle = _middle(quant_min, quant_max)
    scale = max(-low / (middle - quant_min), high / (quant_max - middle), 0.0)
    return (short(max(scale, SMALLEST_SCALE), quant_max - quant_min) if scale else 1.0), middle


def _middle(quant_min: int, quant_max: int) -> int:
    return (quant_min + quant_max + 1) // 2


def short(scale: float, steps: int) -> float:
    """The next scale up that float32 multiplies with every integer of -steps..steps without rounding.

    It has at most 10 significant bits, and fewer where `steps` needs more than 14 of float32's 24: 10 for 8-bit
    activations, 8 for 16-bit ones. So dequantizing is exact, and sums of dequantized values are as good as integers.
    """
    bits = min(_SCALE_BITS, _FLOAT32_BITS - steps.bit_length())
    mantissa, exponent = math.frexp(scale)
    return math.ldexp(math.ceil(math.ldexp(mantissa, bits)), exponent - bits)


def symmetric(
    low: torch.Tensor, high: torch.Tensor, quant_max: int, bias: torch.Tensor | None, input_scale: float
) -> tuple[torch.Tensor, int]:
    """A weight's scale per channel [channels] for levels -quant_max..quant_max, and how many channels met a floor.

    The floors keep an integer kernel sound where a channel's weights are (nearly) all zero: the bias becomes
    rint(bias / (input_scale * scale)) in int32.
    """
    scale = torch.maximum(-low, high).clamp(min=0).double() / quant_max
    floor = torch.full_like(scale, max(float(scale.max()) * _CHANNEL_FLOOR, SMALLEST_SCALE))
    if bias is not None:
        floor = torch.maximum(floor, bias.detach().double().abs() / (input_scale * _LARGEST_BIAS))
    return torch.maximum(scale, floor).float(), int((scale < floor).sum())
