"""Between float32, 8-bit integers and int32 accumulators."""

import torch


@torch.library.custom_op("planish::quantize", mutates_args=())
def quantize(x: torch.Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
    """clamp(rint(x / scale) + zero_point, low, high), one float32 division, half to even; NaN becomes zero_point.

    x: float32 of any shape. The division (no multiplication by a reciprocal) is that of ONNX's QuantizeLinear.
    """
    steps = torch.round(x / torch.tensor(scale, dtype=torch.float32)).nan_to_num(0.0)
    return (steps.clamp(low - zero_point, high - zero_point) + zero_point).to(dtype)


@quantize.register_fake
def _(x, scale, zero_point, low, high, dtype):
    return torch.empty_like(x, dtype=dtype)


@torch.library.custom_op("planish::dequantize", mutates_args=())
def dequantize(q: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """(q - zero_point) * scale in float32. Exact for scales of up to 15 significant bits, as calibration makes them."""
    return (q.to(torch.int32) - zero_point).float() * torch.tensor(scale, dtype=torch.float32)


@dequantize.register_fake
def _(q, scale, zero_point):
    return torch.empty_like(q, dtype=torch.float32)


@torch.library.custom_op("planish::requantize", mutates_args=())
def requantize(
    acc: torch.Tensor, multiplier: torch.Tensor, axis: int, zero_point: int, low: int, high: int, dtype: torch.dtype
) -> torch.Tensor:
    """clamp(rint(f32(acc) * multiplier) + zero_point, low, high), half to even.

    acc: int32. multiplier: float32, of shape [] or, along `axis` of acc, [channels].
    Source: Jacob et al., section 2.2, CVPR 2018, arXiv:1712.05877, with a float32 multiplier.
    """
    steps = torch.round(acc.float() * _along(multiplier, axis, acc.ndim))
    return (steps.clamp(low - zero_point, high - zero_point) + zero_point).to(dtype)


@requantize.register_fake
def _(acc, multiplier, axis, zero_point, low, high, dtype):
    return torch.empty_like(acc, dtype=dtype)


@torch.library.custom_op("planish::dequantize_int32", mutates_args=())
def dequantize_int32(acc: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
    """f32(acc) * scale. acc: int32. scale: float32, of shape [] or, along `axis` of acc, [channels]."""
    return acc.float() * _along(scale, axis, acc.ndim)


@dequantize_int32.register_fake
def _(acc, scale, axis):
    return torch.empty_like(acc, dtype=torch.float32)


def _along(factors: torch.Tensor, axis: int, rank: int) -> torch.Tensor:
    """[channels] broadcastable against a tensor that has its channels along `axis`."""
    if factors.ndim == 0:
        return factors
    return factors.reshape([-1 if dim == axis % rank else 1 for dim in range(rank)])
