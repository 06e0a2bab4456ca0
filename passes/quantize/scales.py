"""From ranges to scales and zero points. All arithmetic in float64, results as float32 holds them."""

import math

import torch

# Below this a scale's reciprocal, and the product of two scales, would leave float32's normal range.
SMALLEST_SCALE = 2.0**-60
# A dead channel's own scale would be near zero, and its integer bias and requantization factor without bounds.
_CHANNEL_FLOOR = 2.0**-20
# Half of int32 for the bias, the other half for the accumulated products.
_LARGEST_BIAS = 2.0**30
_SCALE_BITS = 10
_FLOAT32_BITS = 24


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

