"""Convolutions and linear layers: their weights and biases as integers, their sums in int32."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import TRANSPOSED_CONVS, arguments, is_op, op_name
from ..placement import WEIGHT_QUANTIZER
from .emitter import Emitter
from .quantized import Grid, Quantized

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Product:
    """A product whose input and weight are integers.

    weight  int8, in the op's own layout
    scale   [output channels] float32: of its accumulators, input scale times weight scale
    bias    [output channels] int32, in units of `scale`
    axis    of the output channels in the product's value
    """

    node: fx.Node
    source: Quantized
    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    axis: int

    def multiplier(self, grid: Grid) -> torch.Tensor:
        """[output channels] float32: from accumulators to steps of the output's grid, rounded after each operation."""
        return self.scale / torch.tensor(grid.scale, dtype=torch.float32)


def find(graph: Graph, node: fx.Node, source: Quantized | None) -> Product | str:
    """The integer form of a conv or linear call, or why it has none."""
    call = arguments(node)
    if source is None:
        return "its input is not quantized"
    if not is_op(call.weight, WEIGHT_QUANTIZER):
        return "its weight is not quantized"
    if isinstance(getattr(call, "padding", None), str) and _same_padding(node) is None:
        return "its padding 'same' is uneven"
    quantizer = arguments(call.weight)
    scale = graph.weight(quantizer.scale)
    weight = _integers(graph, call.weight)
    repeats = call.groups if op_name(node) in TRANSPOSED_CONVS else 1  # each group of outputs has the same scales
    scale = torch.tensor(source.grid.scale, dtype=torch.float32) * scale.repeat(repeats)
    bias = _bias(graph, call.bias, scale)
    if (most := _largest_sum(node, weight, bias, source.grid)) > _LARGEST:
        return f"its sums can reach {most:.2g}, more than int32 holds"
    axis = -1 if op_name(node) == "linear" else 1
    return Product(node, source, weight.to(torch.int8), scale, bias.to(torch.int32), axis)


def emit(emitter: Emitter, product: Product) -> fx.Node:
    """The product as an integer call: a node with int32 sums."""
    name = arguments(arguments(product.node).weight).self.target
    weight = emitter.weight(f"{name}_int8", product.weight)
    bias = emitter.weight(f"{name.rpartition('.')[0]}.bias_int32".lstrip("."), product.bias)
    op, options = _CALLS[op_name(product.node)]
    source = product.source
    return emitter.sums(op, product.node, source.node, weight, bias, *options(product.node), source.grid.zero_point)


def _integers(graph: Graph, quantizer: fx.Node) -> torch.Tensor:
    """The weight in float64 steps, rounded as the fake quantizer rounds."""
    call = arguments(quantizer)
    weight, scale, zero_point = (graph.weight(n).detach() for n in (call.self, call.scale, call.zero_point))
    ends = call.axis, call.quant_min, call.quant_max
    rounded = torch.fake_quantize_per_channel_affine(weight, scale, zero_point, *ends)
    shape = [-1 if dim == call.axis else 1 for dim in range(rounded.ndim)]
    return torch.round(rounded.double() / scale.double().reshape(shape))


def _bias(graph: Graph, bias: fx.Node | None, scale: torch.Tensor) -> torch.Tensor:
    """In float64 steps."""
    values = torch.zeros(len(scale)) if bias is None else graph.weight(bias).detach()
    return torch.round(values.double() / scale.double())


def _largest_sum(node: fx.Node, weight: torch.Tensor, bias: torch.Tensor, grid: Grid) -> float:
    """The largest magnitude that any accumulator can have."""
    if op_name(node) in TRANSPOSED_CONVS:  # [in, out / groups, ...]: each input channel of a group adds to each output
        groups = arguments(node).groups
        total = weight.abs().reshape(groups, -1, *weight.shape[1:]).sum(1).flatten(2).sum(2).flatten()
    else:
        total = weight.abs().flatten(1).sum(1)
    return float((total * grid.widest + bias.abs()).max())


def _same_padding(node: fx.Node) -> list[int] | None:
    """The padding of a conv on each side of each dim, in pixels; None where 'same' asks for uneven sides."""
    call = arguments(node)
    rank = call.weight.meta["val"].ndim - 2
    if not isinstance(call.padding, str):
        return _per_dim(call.padding, rank)
    if call.padding == "valid":
        return [0] * rank
    dilation = _per_dim(call.dilation, rank)
    reach = [(int(k) - 1) * d for k, d in zip(call.weight.meta["val"].shape[2:], dilation, strict=True)]
    return None if any(r % 2 for r in reach) else [r // 2 for r in reach]


def _per_dim(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(v) for v in (values * rank if len(values) == 1 else values)]


def _conv_options(node: fx.Node) -> tuple:
    call = arguments(node)
    rank = call.weight.meta["val"].ndim - 2
    return _per_dim(call.stride, rank), _same_padding(node), _per_dim(call.dilation, rank), call.groups


def _transposed_options(node: fx.Node) -> tuple:
    call = arguments(node)
    spread = partial(_per_dim, rank=call.weight.meta["val"].ndim - 2)
    sizes = spread(call.stride), spread(call.padding), spread(call.output_padding)
    return *sizes, call.groups, spread(call.dilation)


# Float op -> the integer op, and that one's arguments between the bias and the zero point.
_CALLS = {
    **dict.fromkeys(("conv1d", "conv2d"), ("conv_int32", _conv_options)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), ("conv_transpose_int32", _transposed_options)),
    "linear": ("linear_int32", lambda node: ()),
}
