"""Early stopping: the best weights so far by `Context.evaluate`, and when to give up."""

from collections.abc import Mapping
from typing import Any

import torch

from ...ir.graph import Graph
from .training_form import unique_weights


class Best:
    """The weights of the epoch with the highest metric. patience: epochs without a better one before training stops."""

    def __init__(self, patience: int):
        self.patience = patience
        self.metric: float | None = None
        self.waited = 0
        self.weights: dict[str, torch.Tensor] = {}

    @property
    def gives_up(self) -> bool:
        return self.patience > 0 and self.waited >= self.patience

    def see(self, metric: float, graph: Graph) -> None:
        """An epoch's metric. NaN is never better."""
        if self.metric is None or metric > self.metric:
            self.metric, self.waited = metric, 0
            self.weights = {name: tensor.detach().clone() for name, tensor in unique_weights(graph).items()}
        else:
            self.waited += 1

    def numbers(self) -> dict[str, Any]:
        return {"metric": self.metric, "waited": self.waited}

    def resume(self, numbers: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        self.metric, self.waited, self.weights = numbers["metric"], numbers["waited"], dict(weights)


def load_weights(graph: Graph, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the graph's own tensors, by name."""
    with torch.no_grad():
        for name, tensor in unique_weights(graph).items():
            tensor.copy_(weights[name])
