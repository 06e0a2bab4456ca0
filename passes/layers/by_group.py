"""A product's weight as one matrix per group and tap, whatever op it belongs to."""

import torch
from torch import fx

from ...ir.ops import TRANSPOSED_CONVS, arguments, is_op


def by_group(product: fx.Node, weight: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """The weight as [groups, a, b, taps], and which of a and b are the outputs and the inputs of a group."""
    groups = 1 if is_op(product, "linear") else arguments(product).groups
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return (grouped, 2, 1) if is_op(product, *TRANSPOSED_CONVS) else (grouped, 1, 2)


def along(channels: torch.Tensor, grouped: torch.Tensor, axis: int) -> torch.Tensor:
    """A per-channel vector in a shape that multiplies along one axis of every group."""
    extents = [grouped.shape[0], 1, 1, 1]
    extents[axis] = grouped.shape[axis]
    return channels.reshape(extents)
