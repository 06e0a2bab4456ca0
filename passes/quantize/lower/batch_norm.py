"""Batch norms in eval form, a factor and an offset for each channel: part of a product, or one of their own."""

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import arguments
from ..scales import symmetric
from .products import Affine, Product, bounded
from .quantized import Quantized

_HIGH = 127


def affine(graph: Graph, node: fx.Node) -> Affine | str:
    """What a batch norm computes, or why that is not known before it runs."""
    call = arguments(node)
    if call.running_mean is None or call.training:
        return "it normalizes with the statistics of each batch"
    mean, variance = (graph.weight(n).detach().double() for n in (call.running_mean, call.running_var))
    gain = 1.0 if call.weight is None else graph.weight(call.weight).detach().double()
    offset = 0.0 if call.bias is None else graph.weight(call.bias).detach().double()
    factor = gain / torch.sqrt(variance + call.eps)
    return Affine(factor, offset - mean * factor)


def find(graph: Graph, node: fx.Node, source: Quantized | None) -> Product | str:
    """A batch norm over integers [N, C, ...] as a depthwise convolution with kernels of one tap, or why it is none.

    The factor of a channel becomes an int8 weight of +-127 whose own scale is the factor's 127th part, so it is as
    exact as float32 holds it; the offset is rounded to a 127th of an input step.
    """
    found, rank = affine(graph, node), node.meta["val"].ndim - 2
    if isinstance(found, str):
        return found
    if source is None:
        return "its input is not quantized"
    if rank not in (1, 2):
        return f"its input has {rank + 2} dims, only 3 and 4 have an integer form"
    size = found.factor.abs()
    scale, _ = symmetric(-size, size, _HIGH, found.offset, source.grid.scale)
    weight = torch.round(found.factor / scale.double()).reshape(-1, 1, *[1] * rank)
    options = [1] * rank, [0] * rank, [1] * rank, len(size)
    call = arguments(node)
    layer = str((call.weight or call.running_mean).target)
    return bounded(Product(node, source, "conv_int32", options, layer, weight, scale, found.offset, axis=1))
