"""What a relu never clips moves into the next layer's bias, so that the value between has a smaller range."""

from typing import Any

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import CONVS, arguments, is_op
from ...base import Context
from ...forward import forward
from ...layers.by_group import along, by_group
from .chains import Pair
from .reference import channel_dim, shift_bias


def absorbed(graph: Graph, pairs: list[Pair], ctx: Context, where: str) -> list[dict[str, Any]]:
    """Lower each output channel by the least value it has in the data, where that is over zero; facts of each layer.

    relu(y - c) = relu(y) - c for y >= c: on the data seen this changes nothing. The paper takes the mean less three
    standard deviations of the batch norm for c, section 4.1.3 of arXiv:1906.04721; the least value seen needs no
    normal distribution. Pairs with more than elementwise calls between, or a second product that pads, are left.
    """
    fitting = [pair for pair in pairs if pair.plain and not pair.clips and _sees_all(pair.second)]
    if not fitting:
        return []
    least = _least(graph, [pair.first for pair in fitting], ctx, where)
    facts = []
    for pair in fitting:
        amount = least[pair.first].clamp(min=0)
        if bool(amount.any()):
            shift_bias(graph, pair.first, -amount)
            weight = graph.weight(arguments(pair.second).weight).detach().double()
            grouped, _, inputs = by_group(pair.second, weight)
            shift_bias(graph, pair.second, (grouped * along(amount, grouped, inputs)).sum((inputs, 3)).reshape(-1))
            name = str(arguments(pair.first).weight.target)
            facts.append({"layer": name, "channels": int((amount > 0).sum()), "most": float(amount.max())})
    return facts


def _sees_all(product: fx.Node) -> bool:
    """True for a product that multiplies no padding: then what is added to a channel adds a constant to the output."""
    if is_op(product, "linear"):
        return True
    padding = arguments(product).padding
    return is_op(product, *CONVS) and (padding == "valid" or (not isinstance(padding, str) and not any(padding)))


def _least(graph: Graph, nodes: list[fx.Node], ctx: Context, where: str) -> dict[fx.Node, torch.Tensor]:
    """Per node the least value of each channel over the data, in float64 [channels]."""
    found: dict[fx.Node, torch.Tensor] = {}

    def watch(node: fx.Node, value: torch.Tensor) -> None:
        if node in wanted:
            low = value.movedim(channel_dim(node, value.ndim), 0).flatten(1).amin(1).double()
            found[node] = torch.minimum(found[node], low) if node in found else low

    wanted = set(nodes)
    with torch.no_grad():
        for inputs in ctx.progress(ctx.batches(graph, where), where):
            forward(graph, inputs, watch=watch)
    return found
