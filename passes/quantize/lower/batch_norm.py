"""A batch norm that stands alone: a depthwise convolution with kernels of one tap."""

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import arguments
from ..scales import symmetric
from .products import Product, bounded
from .quantized import Quantized

_HIGH = 127


def find(graph: Graph, node: fx.Node, source: Quantized | None) -> Product | str:
    """The integer form of a batch norm over integers [N, C, ...], or why it has none.

    Each channel is one factor and one offset. The factor becomes an int8 weight of +-127 whose own scale is the
    factor's 127th part, so it is as exact as float32 holds it; the offset is rounded to a 127th of an input step.
    """
    if source is None:
        return "it stands between a product and its quantizer; fold-batch-norm, run first, makes it part of the product"
    call = arguments(node)
    if call.running_mean is None or call.training:
        return "it normalizes with the statistics of each batch"
    rank = node.meta["val"].ndim - 2
    if rank not in (1, 2):
        return f"its input has {rank + 2} dims, only 3 and 4 have an integer form"
    mean, variance = (graph.weight(n).detach().double() for n in (call.running_mean, call.running_var))
    gain = 1.0 if call.weight is None else graph.weight(call.weight).detach().double()
    offset = 0.0 if call.bias is None else graph.weight(call.bias).detach().double()
    factor = gain / torch.sqrt(variance + call.eps)
    bias = offset - mean * factor
    scale, _ = symmetric(-factor.abs(), factor.abs(), _HIGH, bias, source.grid.scale)
    weight = torch.round(factor / scale.double()).reshape(-1, 1, *[1] * rank)
    options = [1] * rank, [0] * rank, [1] * rank, len(factor)
    layer = str((call.weight or call.running_mean).target)
    return bounded(Product(node, source, "conv_int32", options, layer, weight, scale, bias, axis=1))
