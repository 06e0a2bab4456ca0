"""From ranges to scales and zero points. All arithmetic in float64, results as float32 holds them."""

import torch

# Below this a scale's reciprocal, and the product of two scales, would leave float32's normal range.
SMALLEST_SCALE = 2.0**-60
# A dead channel's own scale would be near zero, and its integer bias and requantization factor without bounds.
_CHANNEL_FLOOR = 2.0**-20
# Half of int32 for the bias, the other half for the accumulated products.
_LARGEST_BIAS = 2.0**30


def affine(low: float, high: float, quant_min: int, quant_max: int) -> tuple[float, int]:
    """Scale and zero point that cover low..high, widened to hold zero exactly.

    real = scale * (q - zero_point). A range that is zero alone gets scale 1, for nothing better is known.
    Source: Jacob et al., section 2.1, CVPR 2018, arXiv:1712.05877.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return 1.0, min(max(0, quant_min), quant_max)
    scale = as_float32(max((high - low) / (quant_max - quant_min), SMALLEST_SCALE))
    zero_point = quant_min + round(-low / scale)
    return scale, min(max(zero_point, quant_min), quant_max)


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


def as_float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
