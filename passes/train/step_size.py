"""The gradient of a quantizer with respect to its own step: learned step size quantization (LSQ).

Esser, McKinstry, Bablani, Appuswamy and Modha, "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_PER_CHANNEL = torch.ops.aten.fake_quantize_per_channel_affine_cachemask.default
_PER_TENSOR = torch.ops.aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default


@dataclass(frozen=True)
class Step:
    """What is fixed about a quantizer.

    low, high  its levels
    axis       of the channels that have scales of their own; None for one scale
    batched    whether the first dim counts samples, which are not counted in the gradient's scale
    """

    low: int
    high: int
    axis: int | None = None
    batched: bool = False

    def along(self, scales: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Scales such that they broadcast over a value."""
        if self.axis is None:
            return scales
        return scales.reshape([-1 if dim == self.axis else 1 for dim in range(value.ndim)])

    def gradient_scale(self, extents: Sequence[int], zero_point: torch.Tensor) -> torch.Tensor:
        """1 / sqrt(n * q_max), section 2.2 of the paper: so that a step, as a share of itself, moves as a weight does.

        n is how many values share a scale: of a weight those of a channel, of an activation those of a sample. q_max
        is the level that is furthest from zero, as in the paper for levels that begin or are centred at zero.
        """
        apart = 0 if self.batched else self.axis
        count = math.prod(extent for dim, extent in enumerate(extents) if dim != apart)
        furthest = torch.maximum(self.high - zero_point, zero_point - self.low)
        return (max(count, 1) * furthest.float()).rsqrt()


def learned_step(
    value: torch.Tensor,
    latent: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    unit: torch.Tensor,
    low: int,
    high: int,
    axis: int | None,
    batched: bool,
) -> torch.Tensor:
    """What aten.fake_quantize_per_tensor_affine or _per_channel_affine gives with `scale`, bit for bit.

    The gradient that the scale would get goes to `latent`, of which the scale is `unit` times a rounded copy. The last
    four are those of `Step`. Under autocast it computes in float32: levels of 8 bits times a scale of 10 do not fit
    into a narrower type.
    """
    with torch.autocast(value.device.type, enabled=False):
        return _LearnedStep.apply(value.float(), latent, scale, zero_point, unit, Step(low, high, axis, batched))  # type: ignore[return-value]


class _LearnedStep(torch.autograd.Function):
    """Equations 1 to 3 of the paper, with a zero point z that stays.

    Between the ends of the levels the gradient to the value is 1, and that to the scale rint(x / s) - x / s; beyond
    them it is 0, and the end minus z. aten's `_fake_quantize_learnable_*` have the same gradient except where x / s is
    half way between levels and z is odd: there they round to another level than the forward pass did. They also want
    float zero points and learn them.
    """

    @staticmethod
    def forward(ctx: Any, value, latent, scale, zero_point, unit, step: Step) -> torch.Tensor:
        ends = step.low, step.high
        if step.axis is None:
            enabled = torch.ones(1, dtype=torch.int64, device=value.device)
            result, inside = _PER_TENSOR(value, scale, zero_point, enabled, *ends)
        else:
            result, inside = _PER_CHANNEL(value, scale, zero_point, step.axis, *ends)
        ctx.save_for_backward(value, result, inside, scale, zero_point)
        ctx.unit, ctx.step = unit, step
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        value, result, inside, scale, zero_point = ctx.saved_tensors
        to_value = gradient * inside if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_value, None, None, None, None, None
        step: Step = ctx.step
        # result / s is rint(x / s) inside and the end minus z outside
        slope = gradient * torch.where(inside, result - value, result) / step.along(scale, value)
        others = [dim for dim in range(value.ndim) if dim != step.axis]
        total = slope.sum(others) if others else slope
        to_latent = total * step.gradient_scale(value.shape, zero_point) * ctx.unit
        return to_value, to_latent.reshape(scale.shape), None, None, None, None
