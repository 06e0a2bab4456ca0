"""Transposed convolutions as kernels: which have one, and its spec."""

from __future__ import annotations

from typing import Any

from torch import fx

from ....ir.ops import arguments
from ..kernels import Epilogue, TransposedConv
from ..kernels.transposed import window


def spec_of(node: fx.Node, batch: int | None, epilogue: Any, bordered: bool = False) -> TransposedConv | None:
    """The spec of a conv_transpose2d or conv_transpose_int32 in two dims; None where it has no kernel.

    That is where there are groups, or where the padding cuts whole windows.
    """
    call, result = arguments(node), node.meta["val"].shape
    if len(result) != 4 or call.groups != 1:
        return None
    _, channels, height, width = call.input.meta["val"].shape
    _, out_channels, *kernel = call.weight.meta["val"].shape
    spec = TransposedConv(
        batch, int(height), int(width), int(channels), int(out_channels), (int(kernel[0]), int(kernel[1])),
        _pair(call.stride), _pair(call.padding), _pair(call.dilation), (int(result[2]), int(result[3])),
        epilogue, bordered,
    )  # fmt: skip
    return spec if window(spec) is not None else None


def has_kernel(node: fx.Node) -> bool:
    """Whether `spec_of` finds one."""
    return spec_of(node, 1, Epilogue()) is not None


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return int(values[0]), int(values[-1])
