"""Sums of two integer tensors with scales of their own, and unary functions as tables."""

import torch


@torch.library.custom_op("planish::add_int8", mutates_args=())
def add_int8(
    left: torch.Tensor,
    right: torch.Tensor,
    zero_left: int,
    zero_right: int,
    factor_left: int,
    factor_right: int,
    shift: int,
    zero_point: int,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """clamp(rint((factor_left * (left - zero_left) + factor_right * (right - zero_right)) / 2**shift) + zero_point).

    Operands are int8 or uint8 and broadcast. The factors are the ratios of scales on a grid of 2**-shift, small enough
    that the sum stays below 2**24: float32 arithmetic in any order, fused or not, gives the same value.
    """
    total = factor_left * (left.double() - zero_left) + factor_right * (right.double() - zero_right)
    steps = torch.round(total / 2.0**shift).clamp(low - zero_point, high - zero_point)
    return (steps + zero_point).to(dtype)


@add_int8.register_fake
def _(left, right, zero_left, zero_right, factor_left, factor_right, shift, zero_point, low, high, dtype):
    return torch.empty_like(left.float() + right.float(), dtype=dtype)


@torch.library.custom_op("planish::lookup_int8", mutates_args=())
def lookup_int8(q: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """table[q - smallest value of q's dtype]. q: int8 or uint8; table: int8 or uint8 [256]."""
    return table[q.to(torch.int64) - torch.iinfo(q.dtype).min]


@lookup_int8.register_fake
def _(q, table):
    return torch.empty_like(q, dtype=table.dtype)
