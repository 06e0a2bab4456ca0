"""Linear layers in float32 whose weights are stored in few bits: what lies in memory, and what it means.

    int8 [O, I]                  one weight a byte
    uint8 [O, ceil(I / 2)]       int4: two weights a byte, the earlier one in the low half, both two's complement
    float16, bfloat16 [O, I]     numbers by themselves, without a scale

Integers have float32 scales [O, groups], one for each run of I / groups neighbouring inputs of an output. The order of
nibbles is that of ONNX's INT4.
"""

import torch
from torch.nn import functional

from ..errors import UsageError

WEIGHT_ONLY = "linear_weight_only"


def pack_int4(q: torch.Tensor) -> torch.Tensor:
    """int8 [O, I] with values -8 to 7 as uint8 [O, ceil(I / 2)]. An odd last nibble is zero."""
    halves = functional.pad(q.view(torch.uint8) & 15, (0, q.shape[1] % 2))
    return halves[:, 0::2] | (halves[:, 1::2] << 4)


def steps(weight: torch.Tensor, inputs: int) -> torch.Tensor:
    """int8 [O, inputs] of a weight stored as int8 or int4."""
    if weight.dtype != torch.uint8:
        return weight
    nibbles = torch.stack([weight & 15, weight >> 4], -1).flatten(1)[:, :inputs].to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def dequantized(weight: torch.Tensor, scale: torch.Tensor | None, inputs: int) -> torch.Tensor:
    """float32 [O, inputs]: every integer times its scale, rounded once; smaller floats are exact."""
    if scale is None:
        return weight.float()
    grouped = steps(weight, inputs).float().reshape(*scale.shape, -1)
    return (grouped * scale.unsqueeze(-1)).reshape(-1, inputs)


def check(weight: torch.Tensor, scale: torch.Tensor | None, inputs: int) -> None:
    """Raises UsageError where a stored weight does not fit `inputs`, or its scales do not fit it."""
    where, kind = WEIGHT_ONLY, str(weight.dtype).removeprefix("torch.")
    if weight.dtype not in (torch.int8, torch.uint8, torch.float16, torch.bfloat16):
        raise UsageError(where, f"the weight is {kind}", "expected int8, uint8 (int4), float16 or bfloat16")
    columns = (inputs + 1) // 2 if weight.dtype == torch.uint8 else inputs
    if weight.ndim != 2 or int(weight.shape[1]) != columns:
        what = f"the weight is {kind} of shape {list(weight.shape)}, it does not fit {inputs} inputs"
        raise UsageError(where, what, f"expected [outputs, {columns}]")
    if (scale is None) == (not weight.dtype.is_floating_point):
        what = f"the weight is {kind} and has {'no' if scale is None else 'a'} scale"
        raise UsageError(where, what, "expected scales for integers, and for nothing else")
    if scale is not None and (scale.ndim != 2 or len(scale) != len(weight) or inputs % scale.shape[1]):
        what = f"scales of shape {list(scale.shape)} for {len(weight)} outputs and {inputs} inputs"
        raise UsageError(where, what, "expected [outputs, groups] with groups that divide the inputs")


@torch.library.custom_op("planish::linear_weight_only", mutates_args=())
def linear_weight_only(
    input: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """input @ dequantized(weight, scale).T + bias, in float32.

    input: float32 [..., I]; weight and scale as above; bias: float32 [O]. A kernel may scale sums instead of weights
    (one sum for each group): like the order of a sum, that is within float32 rounding of this, not equal to it.
    Raises UsageError for weights and scales that do not fit.
    """
    inputs = int(input.shape[-1])
    check(weight, scale, inputs)
    return functional.linear(input, dequantized(weight, scale, inputs), bias)


@linear_weight_only.register_fake
def _(input, weight, scale, bias):
    check(weight, scale, int(input.shape[-1]))
    return input.new_empty((*input.shape[:-1], weight.shape[0]))
