"""Scales and zero points on their way into a graph, and what is worth saying about them."""

from typing import Any

import torch
from torch import fx

from ...ir import rewrite
from ...ir.graph import Graph
from ...ir.ops import arguments, describe, is_op
from ..base import Skip
from .collect import scale_name
from .observers.weights import WEIGHT_OBSERVERS
from .placement import ACTIVATION_QUANTIZER
from .rules import Role, Roles, data_inputs, quantized_product, stored_weight
from .scales import SMALLEST_SCALE, Levels, symmetric


class Settings:
    """Collects the parameters of quantizers, activations first, and writes them all at once.

    changed  how many quantizers get other parameters than they had; notes: what a report should say
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.roles = Roles(graph)
        self.changed = 0
        self.notes: list[Skip] = []
        self._new: dict[str, torch.Tensor] = {}

    def set_activation(
        self, quantizer: fx.Node, levels: Levels, low: float, high: float, values: int
    ) -> dict[str, Any]:
        """Cover low..high, seen in that many values. Returns the row of the report."""
        source = arguments(quantizer).self
        scale, zero_point = levels.grid(low, high)
        if not values:
            self.notes.append(Skip.at(source, "it has no elements in all the data; its scale is 1"))
        elif low == high == 0.0:
            self.notes.append(Skip.at(source, "it is zero in all the data; its scale is 1"))
        elif scale == SMALLEST_SCALE:
            what = f"its values are within {max(-low, high):.3g}; its scale is raised to the least one, 2**-60"
            self.notes.append(Skip.at(source, what))
        self._set(quantizer, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32))
        return {
            "quantizer": quantizer.name,
            "layer": source.name,
            "where": describe(source),
            "scale": scale,
            "zero_point": zero_point,
            "low": low,
            "high": high,
        }

    def set_weight(self, quantizer: fx.Node, observer: str) -> dict[str, Any]:
        """Choose the scales of a weight's channels. Returns the row of the report."""
        call = arguments(quantizer)
        stored = stored_weight(quantized_product(quantizer))
        assert stored is not None
        weight = self.graph.weight(stored).detach()
        # Groups of a linear layer's inputs are rows of a view.
        rows = weight.movedim(call.axis, 0).flatten(1).reshape(len(self.graph.weight(call.scale)), -1)
        magnitude = WEIGHT_OBSERVERS[observer](rows, call.quant_max)
        scale, floored = symmetric(-magnitude, magnitude, call.quant_max, *self._bias_and_input_scale(quantizer))
        if floored:
            dead = f"{floored} of {len(scale)} channels are nearly zero; their scale is raised to its floor"
            self.notes.append(Skip(f"weight '{stored.target}'", dead))
        self._set(quantizer, scale, torch.zeros(len(scale), dtype=torch.int32))
        return {
            "weight": str(stored.target),
            "channels": len(scale),
            "smallest_scale": float(scale.min()),
            "largest_scale": float(scale.max()),
            "floored": floored,
        }

    def write(self) -> None:
        rewrite.set_weights(self.graph, self._new)

    def _bias_and_input_scale(self, quantizer: fx.Node) -> tuple[torch.Tensor | None, float]:
        """What the product's integer bias is made from. Activations must have been set by now."""
        largest, read = bias_and_input(self.graph, self.roles, quantizer)
        return largest, 1.0 if read is None else float(self._new[scale_name(read)])

    def _set(self, quantizer: fx.Node, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
        call = arguments(quantizer)
        old = self.graph.weight(call.scale), self.graph.weight(call.zero_point)
        self.changed += not (torch.equal(old[0], scale) and torch.equal(old[1], zero_point))
        self._new |= {str(call.scale.target): scale, str(call.zero_point.target): zero_point}


def bias_and_input(graph: Graph, roles: Roles, quantizer: fx.Node) -> tuple[torch.Tensor | None, fx.Node | None]:
    """Of the product that reads a weight quantizer: the largest |bias| of each scale, and its input's quantizer.

    Both None where there is no bias, or the input is float: then no integer bias bounds the scale.
    """
    product = quantized_product(quantizer)
    bias = arguments(product).bias
    (read,) = data_inputs(product)
    while roles[read] in (Role.PASS, Role.JOIN) and not is_op(read, ACTIVATION_QUANTIZER):
        read = data_inputs(read)[0]
    if bias is None or not is_op(read, ACTIVATION_QUANTIZER):
        return None, None
    call = arguments(quantizer)
    channels = call.self.meta["val"].shape[call.axis]  # groups of a transposed conv share scales, not biases
    return graph.weight(bias).detach().abs().reshape(-1, channels).amax(0), read
