"""Biases as integers will hold them: multiples of what one step of an int32 sum is worth."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...ir.graph import Graph
from ...ir.ops import arguments, is_op, only_user
from ..quantize.rules import WEIGHT_AXIS, Roles, stored_weight, weight_quantizer
from ..quantize.settings import bias_and_input


@dataclass(frozen=True)
class GridBias:
    """The bias of a product whose sums will be int32, and the scales of what it multiplies, as get_attr nodes."""

    product: fx.Node
    bias: fx.Node
    input_scale: fx.Node
    weight_scale: fx.Node


class GridBiases:
    """The biases of a calibrated graph that `lower-integers` rounds to multiples of input scale times weight scale.

    At 8 bits that step is small beside one of the output. At 4 it is not: a rounded bias moves a whole channel by up to
    some hundredths of a step, everywhere, which training can make up for if it computes with it. A bias before a batch
    norm is not among them: it is rounded only after the norm has been folded into it.
    """

    def __init__(self, graph: Graph):
        self._graph, self.all = graph, tuple(_find(graph))
        stored = graph.module.graph.find_nodes(op="get_attr") if self.all else []
        readers = Counter(id(graph.weight(node)) for node in stored for _ in node.users)
        biases = {entry: graph.weight(entry.bias) for entry in self.all}
        self._own = [entry for entry, bias in biases.items() if bias.requires_grad and readers[id(bias)] == 1]

    def write(self) -> None:
        """Round the graph's biases. A frozen one stays, and one that several products read: each has its own grid."""
        for entry in self._own:
            self._round(entry, self._graph.weight(entry.bias))

    @contextmanager
    def written(self) -> Iterator[None]:
        """Within this the graph's biases are rounded; afterwards they are what they were."""
        before = {entry.bias: self._graph.weight(entry.bias).detach().clone() for entry in self._own}
        self.write()
        try:
            yield
        finally:
            with torch.no_grad():
                for node, bias in before.items():
                    self._graph.weight(node).copy_(bias)

    @torch.no_grad()
    def _round(self, entry: GridBias, bias: torch.Tensor) -> None:
        scales = (self._graph.weight(node) for node in (entry.input_scale, entry.weight_scale))
        bias.copy_(on_grid(bias, *scales))


def on_grid(bias: torch.Tensor, input_scale: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
    """The nearest multiples of input_scale * weight_scale, to which `lower-integers` rounds; gradients go straight on.

    weight_scale [channels] is repeated where a grouped transposed conv has as many biases more.
    """
    return _OnGrid.apply(bias, input_scale, weight_scale)  # type: ignore[return-value]


class _OnGrid(torch.autograd.Function):
    """A function, not `bias + (rounded - bias).detach()`: that would be off by a rounding of float32."""

    @staticmethod
    def forward(ctx: Any, bias, input_scale, weight_scale) -> torch.Tensor:
        step = (input_scale * weight_scale).repeat(len(bias) // len(weight_scale)).double()
        return (torch.round(bias.double() / step) * step).to(bias.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None, None


def _find(graph: Graph) -> Iterator[GridBias]:
    products = [node for node in graph.calls(*WEIGHT_AXIS) if weight_quantizer(node) is not None]
    roles = Roles(graph) if products else None
    for product in products:
        bias, quantizer = arguments(product).bias, weight_quantizer(product)
        if (
            roles is None
            or quantizer is None
            or stored_weight(product) is None
            or bias is None
            or bias.op != "get_attr"
        ):
            continue
        behind = only_user(product)
        _, read = bias_and_input(graph, roles, quantizer)
        if read is not None and not (behind is not None and is_op(behind, "batch_norm")):
            yield GridBias(product, bias, arguments(read).scale, arguments(quantizer).scale)
