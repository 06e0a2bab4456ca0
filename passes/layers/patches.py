"""A conv or linear layer as a matrix product: the rows that its weight multiplies."""

from itertools import product

import torch
from torch import fx
from torch.nn import functional

from ...ir.ops import CONVS, arguments, op_name


def rows_of(node: fx.Node, x: torch.Tensor, weight: torch.Tensor, at: torch.Tensor | None = None) -> torch.Tensor:
    """[groups, rows, unknowns]: for every group and every position of the output what the weight is multiplied with.

    x       the operand: [..., in] of a linear layer, [batch, in, ...] or [in, ...] of a conv
    weight  [out, in / groups, ...]; a flattened filter has its unknowns in the order of the last axis
    at      only these of a sample's positions, counted in the order of the output's dims; of a linear layer, these rows
    """
    if op_name(node) not in CONVS:
        rows = x.reshape(1, -1, x.shape[-1])
        return rows if at is None else rows[:, at]
    call, kernel = arguments(node), weight.shape[2:]
    x = x if x.ndim == weight.ndim else x[None]
    x = functional.pad(x, _padding(call, kernel))
    stride, dilation = (_spread(value, len(kernel)) for value in (call.stride, call.dilation))
    extents = [
        (size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    inside = () if at is None else torch.unravel_index(at, extents)
    taps = [x[(..., *_window(tap, extents, stride, dilation))] for tap in product(*map(range, kernel))]
    taps = [tap[(..., *inside)] for tap in taps] if inside else taps
    patches = torch.stack(taps, 2).unflatten(1, (call.groups, -1))  # [batch, groups, in / groups, taps, ...]
    return patches.flatten(4).permute(1, 0, 4, 2, 3).flatten(3).flatten(1, 2)


def outputs_of(
    node: fx.Node, y: torch.Tensor, weight: torch.Tensor, groups: int, at: torch.Tensor | None = None
) -> torch.Tensor:
    """[groups, rows, out / groups] of an output (or anything of its shape), in the order of `rows_of`."""
    if op_name(node) not in CONVS:
        rows = y.reshape(1, -1, y.shape[-1])
        return rows if at is None else rows[:, at]
    y = y if y.ndim == weight.ndim else y[None]
    y = y.flatten(2) if at is None else y.flatten(2)[..., at]
    return y.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def channel_last(y: torch.Tensor, channel: int) -> torch.Tensor:
    """[positions, channels] of a value with its channels at one dim."""
    return y.movedim(channel, -1).reshape(-1, y.shape[channel])


def _window(tap: tuple[int, ...], extents: list[int], stride: list[int], dilation: list[int]) -> list[slice]:
    starts = [offset * d for offset, d in zip(tap, dilation, strict=True)]
    return [slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, stride, extents, strict=True)]


def _padding(call, kernel) -> list[int]:
    """As `functional.pad` wants it: last dim first, before and after."""
    dims = len(kernel)
    if call.padding == "same":
        total = [d * (k - 1) for d, k in zip(_spread(call.dilation, dims), kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in _spread(0 if call.padding == "valid" else call.padding, dims)]
    return [pad for side in reversed(sides) for pad in side]


def _spread(value, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values
