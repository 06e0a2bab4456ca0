"""TIR kernels: one module per family, each with `prim_func`, `pack`, `signature` and `describe`, and with `takes_parts`
where its input may lie in several maps.

A kernel is f(inputs..., weights..., [residual], output), in destination style. The functions here find the family of a
spec and call it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from . import (
    attention,
    batched_matmul,
    concat,
    depthwise,
    direct,
    elementwise,
    expand_depthwise,
    flat_integers,
    integer_elementwise,
    layout,
    matrix_conv,
    matrix_plan,
    matrix_transposed,
    packed_columns,
    pointwise,
    pool,
    row_reductions,
    transposed,
    weight_only,
    winograd,
    winograd_integers,
)
from .activations import ACTIVATIONS
from .attention import Attention
from .batched_matmul import BatchedMatmul
from .concat import Concat
from .epilogues import Dequantize, Epilogue, Requantize
from .flat_integers import FlatLookup, FlatQuantize
from .requantize import Addition, StoredGrid, constants
from .row_reductions import LayerNorm, Softmax
from .shapes import (
    Binary,
    Dense,
    Depthwise,
    DirectConv,
    ExpandDepthwise,
    GlobalMean,
    IntegerAdd,
    IntegerMul,
    IntegerWinograd,
    Lookup,
    Pointwise,
    Pool,
    Signature,
    Spec,
    ToFloat,
    ToIntegers,
    ToPacked,
    ToPlain,
    TransposedConv,
    Unary,
    Window,
    Winograd,
    round_up,
)
from .tile import Tiling
from .tokens import Tokens
from .weight_only import WeightOnlyDense

MOST_PARTS = 4  # of an input: each has code of its own

FAMILIES: dict[type, Any] = {
    Attention: attention,
    BatchedMatmul: batched_matmul,
    Concat: concat,
    **dict.fromkeys((FlatLookup, FlatQuantize), flat_integers),
    **dict.fromkeys((LayerNorm, Softmax), row_reductions),
    Pointwise: pointwise,
    Dense: pointwise,
    WeightOnlyDense: weight_only,
    DirectConv: direct,
    Winograd: winograd,
    IntegerWinograd: winograd_integers,
    TransposedConv: transposed,
    Depthwise: depthwise,
    ExpandDepthwise: expand_depthwise,
    GlobalMean: pool,
    Pool: pool,
    Binary: elementwise,
    Unary: elementwise,
    ToPacked: layout,
    ToPlain: layout,
    **dict.fromkeys((IntegerAdd, IntegerMul, Lookup, ToIntegers, ToFloat), integer_elementwise),
}


def family(spec: Spec, arithmetic: Arithmetic) -> Any:
    """The module of a spec: that of a matrix unit, or one for images of few channels, where it takes the spec."""
    if isinstance(spec, TransposedConv):
        return matrix_transposed if matrix_transposed.takes(spec, arithmetic) else transposed
    if packed_columns.takes(spec, arithmetic):
        return packed_columns
    return matrix_conv if matrix_plan.takes(spec, arithmetic) else FAMILIES[type(spec)]


def prim_func(spec: Spec, arithmetic: Arithmetic) -> Any:
    """The kernel as a TIR PrimFunc without a global symbol."""
    return family(spec, arithmetic).prim_func(spec, arithmetic)


def pack(spec: Spec, arithmetic: Arithmetic, *weights: Any) -> list[np.ndarray]:
    """Weights and biases in PyTorch's layouts -> the arrays that the kernel reads, in call order.

    A missing bias is None. Products of integers take weight, bias, multiplier per channel, `constants` and the input's
    zero point in memory. ExpandDepthwise takes the weight and bias of both its convolutions, the 1x1's first.
    """
    return family(spec, arithmetic).pack(spec, arithmetic, *weights)


def signature(spec: Spec, arithmetic: Arithmetic) -> Signature:
    """Shapes of all parameters."""
    return family(spec, arithmetic).signature(spec, arithmetic)


def tiling(spec: Spec, arithmetic: Arithmetic) -> Tiling | None:
    """What the register tiles of a kernel cover; None for one that has none, or that takes them from another spec."""
    found = getattr(family(spec, arithmetic), "tiling", None)
    return found(spec, arithmetic) if found else None


def in_parts(spec: Spec, arithmetic: Arithmetic, channels: tuple[int, ...]) -> Spec | None:
    """The spec whose input lies in maps of so many `channels` each, side by side; None where its kernel reads one map.

    Every map fills whole vectors, and whole passes of the inner loop. Direct kernels read one: they are the slowest to
    compile, each part would have code of its own, and a copy is the smallest share of their time.
    """
    takes = getattr(family(spec, arithmetic), "takes_parts", None)
    is_whole = not any(extent % max(arithmetic.lanes, arithmetic.unroll) for extent in channels)
    if takes is None or not takes(spec, arithmetic) or not is_whole or len(channels) > MOST_PARTS:
        return None
    return replace(spec, parts=channels)  # type: ignore[call-arg]


def describe(spec: Spec, arithmetic: Arithmetic) -> str:
    """Family and register tile in a few words."""
    return family(spec, arithmetic).describe(spec, arithmetic)


__all__ = [
    "ACTIVATIONS",
    "Addition",
    "Attention",
    "BatchedMatmul",
    "Binary",
    "Concat",
    "Dense",
    "Depthwise",
    "Dequantize",
    "DirectConv",
    "Epilogue",
    "ExpandDepthwise",
    "FlatLookup",
    "FlatQuantize",
    "GlobalMean",
    "IntegerAdd",
    "IntegerMul",
    "IntegerWinograd",
    "LayerNorm",
    "Lookup",
    "Pointwise",
    "Pool",
    "Requantize",
    "Signature",
    "Softmax",
    "Spec",
    "StoredGrid",
    "ToFloat",
    "ToIntegers",
    "ToPacked",
    "ToPlain",
    "Tokens",
    "TransposedConv",
    "Unary",
    "WeightOnlyDense",
    "Window",
    "Winograd",
    "constants",
    "describe",
    "in_parts",
    "pack",
    "prim_func",
    "round_up",
    "signature",
    "tiling",
]
