"""Convolutions and linear layers: their weights and biases as integers, their sums in int32."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import TRANSPOSED_CONVS, arguments, is_op, op_name
from ...layers.by_group import along, by_group
from ..placement import WEIGHT_QUANTIZER
from .emitter import Emitter
from .quantized import INT32_MAX, Grid, Quantized

# Factors of a batch norm that are smaller than this part of the largest are zero.
_LEAST_FACTOR = 2.0**-20
_LARGEST_BIAS = 2.0**30


@dataclass(frozen=True)
class Product:
    """A product of integers by stored integers: a conv or linear layer, or what is computed as one.

    node     the float call whose sums these are
    op       the integer op, and `options`: its arguments between the bias and the zero point
    layer    the name that the weights are stored under
    weight   int8, in the op's own layout
    scale    [output channels] float32: of its accumulators, input scale times weight scale
    bias     [output channels] int32, in units of `scale`
    axis     of the output channels in the product's value
    """

    node: fx.Node
    source: Quantized
    op: str
    options: tuple
    layer: str
    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    axis: int

    def multiplier(self, grid: Grid) -> torch.Tensor:
        """[output channels] float32: from accumulators to steps of the output's grid, rounded after each operation."""
        return self.scale / torch.tensor(grid.scale, dtype=torch.float32)


@dataclass(frozen=True)
class Affine:
    """y = factor * x + offset for each channel, both float64 [channels]."""

    factor: torch.Tensor
    offset: torch.Tensor


def find(graph: Graph, node: fx.Node, source: Quantized | None, behind: Affine | None = None) -> Product | str:
    """The integer form of a conv or linear call, or why it has none.

    behind  what a batch norm makes of the result: it changes scales, signs and biases, and no weight's magnitude
    """
    call = arguments(node)
    if source is None:
        return "its input is not quantized"
    if not is_op(call.weight, WEIGHT_QUANTIZER):
        return "its weight is not quantized"
    if call.bias is not None and call.bias.op != "get_attr":
        return "its bias is computed, not stored"
    op, make_options = _CALLS[op_name(node)]
    options = make_options(node)
    if isinstance(options, str):
        return options
    quantizer = arguments(call.weight)
    repeats = call.groups if op_name(node) in TRANSPOSED_CONVS else 1  # each group of outputs has the same scales
    scale = graph.weight(quantizer.scale).repeat(repeats)
    weight = _integers(graph, call.weight)
    bias = torch.zeros(len(scale)) if call.bias is None else graph.weight(call.bias).detach()
    layer = str(quantizer.self.target)
    if behind is not None:
        bias = bias.double() * behind.factor + behind.offset
        size, sign = _size_and_sign(behind.factor, bias.abs() / (source.grid.scale * scale.double()))
        grouped, outputs, _ = by_group(node, weight)
        weight = (grouped * along(sign.float(), grouped, outputs)).reshape(weight.shape)
        scale = (scale.double() * size).float()
    axis = -1 if op_name(node) == "linear" else node.meta["val"].ndim - weight.ndim + 1
    return bounded(Product(node, source, op, options, layer, weight, scale, bias, axis))


def _size_and_sign(factor: torch.Tensor, biases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of a batch norm as scales over zero and signs. `biases`: what is added, in steps of size 1.

    A factor that is (nearly) zero beside the others has sign zero, and a size that keeps its bias in int32.
    """
    size = factor.abs()
    dead = size <= size.max() * _LEAST_FACTOR
    least = torch.maximum(size.max() * _LEAST_FACTOR, biases / _LARGEST_BIAS)
    return torch.where(dead, torch.where(least > 0, least, 1.0), size), torch.where(dead, 0.0, factor.sign())


def bounded(product: Product) -> Product | str:
    """A product whose sums stay in int32, given one with float weights (in steps), their own scales, a float bias."""
    grid = product.source.grid
    scale = torch.tensor(grid.scale, dtype=torch.float32) * product.scale
    if not bool(torch.isfinite(scale).all()):
        return f"its scales ({grid.scale:.2g} and {float(product.scale.max()):.2g}) have a product beyond float32"
    bias = torch.round(product.bias.double() / scale.double())
    if (most := _largest_sum(product, bias)) > INT32_MAX:
        return f"its sums can reach {most:.2g}, more than int32 holds"
    return replace(product, weight=product.weight.to(torch.int8), bias=bias.to(torch.int32), scale=scale)


def emit(emitter: Emitter, product: Product) -> fx.Node:
    """The product as an integer call: a node with int32 sums."""
    weight = emitter.weight(f"{product.layer}_int8", product.weight)
    bias = emitter.weight(f"{product.layer.rpartition('.')[0]}.bias_int32".lstrip("."), product.bias)
    source = product.source
    args = source.node, weight, bias, *product.options, source.grid.zero_point
    return emitter.sums(product.op, product.node, *args)


def _integers(graph: Graph, quantizer: fx.Node) -> torch.Tensor:
    """The weight in float32 steps, rounded as the fake quantizer rounds: exact, for they are small numbers."""
    call = arguments(quantizer)
    weight, scale, zero_point = (graph.weight(n).detach() for n in (call.self, call.scale, call.zero_point))
    ends = call.axis, call.quant_min, call.quant_max
    rounded = torch.fake_quantize_per_channel_affine(weight, scale, zero_point, *ends)
    shape = [-1 if dim == call.axis else 1 for dim in range(rounded.ndim)]
    return rounded.div_(scale.reshape(shape)).round_()


def _largest_sum(product: Product, bias: torch.Tensor) -> float:
    """The largest magnitude that any accumulator can have."""
    weight = product.weight.abs()
    if op_name(product.node) in TRANSPOSED_CONVS:  # [in, out / groups, ...]: a group's inputs add to all its outputs
        groups = arguments(product.node).groups
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    total = weight.flatten(1).sum(1, dtype=torch.float64)
    return float((total * product.source.grid.widest + bias.abs()).max())


def _conv_options(node: fx.Node) -> tuple | str:
    call = arguments(node)
    spread = _spread(node)
    dilation, padding = spread(call.dilation), call.padding
    if padding == "same":
        reach = [(int(k) - 1) * d for k, d in zip(call.weight.meta["val"].shape[2:], dilation, strict=True)]
        if any(r % 2 for r in reach):
            return "its padding 'same' is uneven"
        padding = [r // 2 for r in reach]
    padding = [0] * len(dilation) if padding == "valid" else spread(padding)
    return spread(call.stride), padding, dilation, call.groups


def _transposed_options(node: fx.Node) -> tuple:
    call, spread = arguments(node), _spread(node)
    sizes = spread(call.stride), spread(call.padding), spread(call.output_padding)
    return *sizes, call.groups, spread(call.dilation)


def _spread(node: fx.Node) -> Callable[[Any], list[int]]:
    """From one number for all dims, or one for each, to a list with one for each."""
    return partial(per_dim, rank=arguments(node).weight.meta["val"].ndim - 2)


def per_dim(value: Any, rank: int) -> list[int]:
    """[3, 3] from 3 or [3], for two dims."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(v) for v in (values * rank if len(values) == 1 else values)]


# Float op -> the integer op, and that one's arguments between the bias and the zero point, or why they do not exist.
_CALLS: dict[str, tuple[str, Callable[[fx.Node], tuple | str]]] = {
    **dict.fromkeys(("conv1d", "conv2d"), ("conv_int32", _conv_options)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), ("conv_transpose_int32", _transposed_options)),
    "linear": ("linear_int32", lambda node: ()),
}
