"""TIR kernels: one module per family, each with `prim_func`, `pack`, `signature` and `describe`.

A kernel is f(inputs..., weights..., [residual], output), in destination style. The functions here find the family of a
spec and call it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import depthwise, direct, elementwise, expand_depthwise, layout, pointwise, pool
from .activations import ACTIVATIONS
from .shapes import (
    Binary,
    Dense,
    Depthwise,
    DirectConv,
    Epilogue,
    ExpandDepthwise,
    GlobalMean,
    Pointwise,
    Pool,
    Signature,
    Spec,
    ToPacked,
    ToPlain,
    Unary,
    Window,
    round_up,
)

FAMILIES: dict[type, Any] = {
    Pointwise: pointwise,
    Dense: pointwise,
    DirectConv: direct,
    Depthwise: depthwise,
    ExpandDepthwise: expand_depthwise,
    GlobalMean: pool,
    Pool: pool,
    Binary: elementwise,
    Unary: elementwise,
    ToPacked: layout,
    ToPlain: layout,
}


def prim_func(spec: Spec, arithmetic: Arithmetic) -> Any:
    """The kernel as a TIR PrimFunc without a global symbol."""
    return FAMILIES[type(spec)].prim_func(spec, arithmetic)


def pack(spec: Spec, arithmetic: Arithmetic, *weights: np.ndarray | None) -> list[np.ndarray]:
    """Weights and biases in PyTorch's layouts -> the arrays that the kernel reads, in call order.

    A missing bias is None. ExpandDepthwise takes the weight and bias of both its convolutions, the 1x1's first.
    """
    return FAMILIES[type(spec)].pack(spec, arithmetic, *weights)


def signature(spec: Spec, arithmetic: Arithmetic) -> Signature:
    """Shapes of all parameters."""
    return FAMILIES[type(spec)].signature(spec, arithmetic)


def describe(spec: Spec, arithmetic: Arithmetic) -> str:
    """Family and register tile in a few words."""
    return FAMILIES[type(spec)].describe(spec, arithmetic)


__all__ = [
    "ACTIVATIONS",
    "Binary",
    "Dense",
    "Depthwise",
    "DirectConv",
    "Epilogue",
    "ExpandDepthwise",
    "GlobalMean",
    "Pointwise",
    "Pool",
    "Signature",
    "Spec",
    "ToPacked",
    "ToPlain",
    "Unary",
    "Window",
    "describe",
    "pack",
    "prim_func",
    "round_up",
    "signature",
]
