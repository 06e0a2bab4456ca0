"""Exact sums of integers, from which means are requantized."""

import torch
from torch.nn import functional


@torch.library.custom_op("planish::sum_pool2d_int32", mutates_args=())
def sum_pool2d_int32(
    q: torch.Tensor, kernel_size: list[int], stride: list[int], padding: list[int], zero_point: int
) -> torch.Tensor:
    """The sum of q - zero_point over each window; padding counts as zero_point. q: int8 or uint8 [N, C, H, W]."""
    centered = q.double() - zero_point
    return functional.avg_pool2d(centered, kernel_size, stride, padding, divisor_override=1).to(torch.int32)


@sum_pool2d_int32.register_fake
def _(q, kernel_size, stride, padding, zero_point):
    like = functional.avg_pool2d(q.float(), kernel_size, stride, padding)
    return torch.empty_like(like, dtype=torch.int32)


@torch.library.custom_op("planish::sum_int32", mutates_args=())
def sum_int32(q: torch.Tensor, dim: list[int], keepdim: bool, zero_point: int) -> torch.Tensor:
    """The sum of q - zero_point over some dims. q: int8 or uint8."""
    return (q.to(torch.int32) - zero_point).sum(dim, keepdim, dtype=torch.int32)


@sum_int32.register_fake
def _(q, dim, keepdim, zero_point):
    return torch.empty_like(q.float().sum(dim, keepdim), dtype=torch.int32)
