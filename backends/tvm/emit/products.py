"""Emitting a fused product: conv or linear, or an expanding conv with its depthwise conv, as one kernel call."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx
from tvm import relax

from ....ir.integers.packed_weights import WEIGHT_ONLY
from ....ir.ops import arguments, is_op, op_name
from ..kernels import Dense, Depthwise, DirectConv, ExpandDepthwise, Pointwise, WeightOnlyDense, winograd_choice
from . import concatenation, transposed, weight_only
from .fuse import Product, ProductPair, is_depthwise, is_pointwise, window
from .rows import Rows

if TYPE_CHECKING:
    from ..relax import Emitter


def emit(emitter: Emitter, kernel: Product | ProductPair) -> None:
    """Emit the kernel and record its value under its result node."""
    if isinstance(kernel, ProductPair):
        _emit_pair(emitter, kernel)
    elif op_name(kernel.node) in ("linear", WEIGHT_ONLY):
        _emit_linear(emitter, kernel)
    else:
        _emit_conv(emitter, kernel)


def _emit_conv(emitter: Emitter, product: Product) -> None:
    source, call = product.source, arguments(product.node)
    batch, channels, height, width = _nchw(emitter, source)
    inputs = [] if product.residual is None else [emitter.values.packed(product.residual)]
    spec: Any
    if op_name(product.node) == "conv_transpose2d":
        spec = transposed.spec_of(product.node, batch, product.epilogue)
        _emit_packed(emitter, product, spec, [emitter.values.packed(source), *inputs])
        return
    out_channels = int(call.weight.meta["val"].shape[0])
    shape, epilogue = window(product.node), product.epilogue
    if is_depthwise(product.node):
        spec = Depthwise(batch, height, width, channels, shape, epilogue)
    elif is_pointwise(product.node) and shape.stride == (1, 1):
        spec = Pointwise(batch, height, width, channels, out_channels, epilogue)
    else:
        # An image of few channels is read in place; packing it would multiply its size.
        image = not emitter.values.is_packed(source) and channels < emitter.arithmetic_of(product.node).lanes
        spec = DirectConv(batch, height, width, channels, out_channels, shape, call.groups, image, epilogue)
        spec = winograd_choice.instead_of(spec, emitter.arithmetic_of(product.node)) or spec
    if getattr(spec, "image", False):
        first = [emitter.values[source]]
    else:
        spec, first = concatenation.read(emitter, source, spec, emitter.arithmetic_of(product.node))
    _emit_packed(emitter, product, spec, [*first, *inputs])


def _emit_packed(emitter: Emitter, product: Product, spec: Any, inputs: list[relax.Expr]) -> None:
    value = emitter.product_kernel(product.result, spec, inputs, _weights(emitter, product.node))
    emitter.values.set_packed(product.result, value)


def _emit_pair(emitter: Emitter, pair: ProductPair) -> None:
    batch, in_channels, height, width = _nchw(emitter, pair.source)
    channels = int(arguments(pair.expand.node).weight.meta["val"].shape[0])
    spec = ExpandDepthwise(
        batch, height, width, in_channels, channels, window(pair.depthwise.node),
        expand=pair.expand.epilogue, epilogue=pair.depthwise.epilogue,
    )  # fmt: skip
    weights = _weights(emitter, pair.expand.node) + _weights(emitter, pair.depthwise.node)
    value = emitter.product_kernel(pair.result, spec, [emitter.values.packed(pair.source)], weights)
    emitter.values.set_packed(pair.result, value)


def _emit_linear(emitter: Emitter, product: Product) -> None:
    """Rows are all leading dims in one; their number is known at run time where one of them is symbolic."""
    result = product.result.meta["val"].shape
    out_features, in_features = int(result[-1]), int(arguments(product.node).input.meta["val"].shape[-1])
    rows = Rows.of(product.result, emitter.values[product.source])
    inputs = [rows.flat(emitter, emitter.values[product.source], in_features)]
    if product.residual is not None:
        inputs.append(rows.flat(emitter, emitter.values[product.residual], out_features))
    arithmetic = weight_only.arithmetic(emitter, product.node)
    spec: Any
    if arithmetic is None:
        is_packed = is_op(product.node, WEIGHT_ONLY)
        weights = weight_only.floats(emitter, product.node) if is_packed else _weights(emitter, product.node)
        spec = Dense(rows.count, in_features, out_features, product.epilogue)
    else:
        scales = weight_only.scales(product.node)
        spec = WeightOnlyDense(rows.count, in_features, out_features, scales, product.epilogue)
        weights = weight_only.arrays(emitter, product.node)
    value = emitter.product_kernel(product.result, spec, inputs, weights, arithmetic)
    emitter.values[product.result] = rows.unflat(emitter, value, out_features)


def _weights(emitter: Emitter, node: fx.Node) -> list[np.ndarray | None]:
    call = arguments(node)
    return [emitter.array(call.weight), None if call.bias is None else emitter.array(call.bias)]


def _nchw(emitter: Emitter, node: fx.Node) -> tuple[int | None, int, int, int]:
    _, channels, height, width = node.meta["val"].shape
    return emitter.batch(node), int(channels), int(height), int(width)
