"""Statistics of what every layer puts out, per channel, over the data."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from ....ir.errors import UsageError
from ....ir.graph import Graph
from ....ir.ops import describe, is_op, only_user
from ...forward import forward
from ..index.constraints import WEIGHT_WRAPPERS
from ..index.index_graph import IndexGraph
from ..index.relation import Dim

ACTIVATIONS = (
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu",
    "silu", "mish", "softplus", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "threshold",
)  # fmt: skip
# What belongs to a layer when it alone reads the layer's output.
FOLLOWERS = ("batch_norm", "instance_norm", "dropout", "feature_dropout", *ACTIVATIONS)


@dataclass
class _Place:
    """The value that stands for a layer's output: its node, the dim of the channels, and the sums over it so far."""

    node: fx.Node
    dim: int
    magnitude: torch.Tensor
    zeros: torch.Tensor
    count: int = 0

    def add(self, value: torch.Tensor) -> None:
        rest = [d for d in range(value.ndim) if d != self.dim]
        value = value.detach()
        self.magnitude += value.abs().sum(rest, dtype=torch.float64).cpu()
        self.zeros += (value == 0).sum(rest).cpu()
        self.count += value.numel() // value.shape[self.dim]


class Activations:
    """The mean magnitude and the share of zeros of each layer's channels.

    They are those of the layer's output after the batch norm and the activation that alone read it; a sum with a
    shortcut that goes into an activation is passed as well. Layers whose channels are no dim of their output, such as
    recurrent ones with several directions, are not seen.
    """

    def __init__(self, graph: Graph):
        self.graph, self.index = graph, IndexGraph(graph)
        self.places: dict[tuple[fx.Node, int], _Place] = {}
        self.layers: dict[str, _Place] = {}
        for layer, channels in self.index.channels.items():
            found = self._output(layer, channels)
            if found is not None:
                zeros = torch.zeros(len(channels), dtype=torch.float64)
                self.layers[layer] = self.places.setdefault(found, _Place(*found, zeros, zeros.clone()))
        self._by_node: dict[fx.Node, list[_Place]] = {}
        for place in self.places.values():
            self._by_node.setdefault(place.node, []).append(place)

    def observe(self, inputs: tuple[torch.Tensor, ...], where: str) -> None:
        """Add one batch. Raises UsageError for NaN or infinity, naming the layer."""
        with torch.no_grad():
            forward(self.graph, inputs, watch=self.watch)
        self.check(where)

    def watch(self, node: fx.Node, value: torch.Tensor) -> None:
        for place in self._by_node.get(node, ()):
            place.add(value)

    def check(self, where: str) -> None:
        """Raises UsageError where a sum is not finite."""
        for layer, place in self.layers.items():
            if not bool(torch.isfinite(place.magnitude).all()):
                what = f"the output of layer '{layer.removesuffix('.weight')}' holds NaN or infinity"
                raise UsageError(where, what, f"seen after {describe(place.node)}", "check the data and the weights")

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """ "activation" and "zeros" by the layer's weight: [channels]."""
        return {
            "activation": {layer: (p.magnitude / p.count).numpy() for layer, p in self.layers.items()},
            "zeros": {layer: (p.zeros / p.count).numpy() for layer, p in self.layers.items()},
        }

    def _output(self, layer: str, channels: Dim) -> tuple[fx.Node, int] | None:
        """(node, dim) of the value that stands for the layer's output."""
        readers = self.graph.weight_readers(layer)
        while any(is_op(reader, *WEIGHT_WRAPPERS) for reader in readers):
            readers = [u for r in readers for u in (r.users if is_op(r, *WEIGHT_WRAPPERS) else (r,))]
        for node in (n for reader in readers for n in (reader, *reader.users)):
            dim = self._dim_of(node, channels)
            if dim is not None:
                return self._last_follower(node, dim, channels), dim
        return None

    def _dim_of(self, node: fx.Node, channels: Dim) -> int | None:
        """The dim of a node's only tensor that holds these channels in their order."""
        if len(self.index.values.get(node, ())) != 1:
            return None
        label = self.index.components.label
        for position, dim in enumerate(self.index[node]):
            if dim is channels or np.array_equal(label[dim], label[channels]):
                return position
        return None

    def _last_follower(self, node: fx.Node, dim: int, channels: Dim) -> fx.Node:
        while (user := only_user(node)) is not None:
            after = only_user(user) if is_op(user, "add") else None
            follower = after if is_op(after, *ACTIVATIONS) else user if is_op(user, *FOLLOWERS) else None
            if follower is None or self._dim_of(follower, channels) != dim:
                break
            node = follower
        return node
