"""Sums of products of integers, in int32. Computed in float64, which holds every sum of these sizes exactly.

Weights are int8 without zero point; biases int32 in units of (input scale * weight scale). An accumulator that leaves
int32 is refused when a graph is lowered, not here.
"""

import torch
from torch.nn import functional

_CONVS = {1: functional.conv1d, 2: functional.conv2d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d}


def _centered(q: torch.Tensor, zero_point: int) -> torch.Tensor:
    return q.double() - zero_point


@torch.library.custom_op("planish::conv_int32", mutates_args=())
def conv_int32(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    zero_point: int,
) -> torch.Tensor:
    """conv(input - zero_point, weight) + bias. Padding counts as zero_point.

    input: int8 or uint8 [N, C, L] or [N, C, H, W]; weight: int8 [O, C / groups, ...]; bias: int32 [O].
    """
    conv = _CONVS[weight.ndim - 2]
    return conv(_centered(input, zero_point), weight.double(), bias.double(), stride, padding, dilation, groups).to(
        torch.int32
    )


@conv_int32.register_fake
def _(input, weight, bias, stride, padding, dilation, groups, zero_point):
    conv = _CONVS[weight.ndim - 2]
    like = conv(input.float(), weight.float(), bias.float(), stride, padding, dilation, groups)
    return torch.empty_like(like, dtype=torch.int32)


@torch.library.custom_op("planish::conv_transpose_int32", mutates_args=())
def conv_transpose_int32(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
    zero_point: int,
) -> torch.Tensor:
    """conv_transpose(input - zero_point, weight) + bias.

    input: int8 or uint8 [N, C, L] or [N, C, H, W]; weight: int8 [C, O / groups, ...]; bias: int32 [O].
    """
    conv = _TRANSPOSED[weight.ndim - 2]
    options = stride, padding, output_padding, groups, dilation
    return conv(_centered(input, zero_point), weight.double(), bias.double(), *options).to(torch.int32)


@conv_transpose_int32.register_fake
def _(input, weight, bias, stride, padding, output_padding, groups, dilation, zero_point):
    conv = _TRANSPOSED[weight.ndim - 2]
    like = conv(input.float(), weight.float(), bias.float(), stride, padding, output_padding, groups, dilation)
    return torch.empty_like(like, dtype=torch.int32)


@torch.library.custom_op("planish::linear_int32", mutates_args=())
def linear_int32(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, zero_point: int) -> torch.Tensor:
    """(input - zero_point) @ weight.T + bias. input: int8 or uint8 [..., I]; weight: int8 [O, I]; bias: int32 [O]."""
    return functional.linear(_centered(input, zero_point), weight.double(), bias.double()).to(torch.int32)


@linear_int32.register_fake
def _(input, weight, bias, zero_point):
    return torch.empty_like(functional.linear(input.float(), weight.float()), dtype=torch.int32)


@torch.library.custom_op("planish::matmul_int32", mutates_args=())
def matmul_int32(left: torch.Tensor, right: torch.Tensor, zero_left: int, zero_right: int) -> torch.Tensor:
    """(left - zero_left) @ (right - zero_right), with the shapes of torch.matmul. Both int8 or uint8."""
    return torch.matmul(_centered(left, zero_left), _centered(right, zero_right)).to(torch.int32)


@matmul_int32.register_fake
def _(left, right, zero_left, zero_right):
    return torch.empty_like(torch.matmul(left.float(), right.float()), dtype=torch.int32)


@torch.library.custom_op("planish::mul_int32", mutates_args=())
def mul_int32(left: torch.Tensor, right: torch.Tensor, zero_left: int, zero_right: int) -> torch.Tensor:
    """(left - zero_left) * (right - zero_right), broadcast. Both int8 or uint8."""
    return (left.to(torch.int32) - zero_left) * (right.to(torch.int32) - zero_right)


@mul_int32.register_fake
def _(left, right, zero_left, zero_right):
    return torch.empty_like(left.float() * right.float(), dtype=torch.int32)
