"""Small float64 models with their groups, and which entries of which weights a group owns, worked out slowly."""

import copy
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

from planish.ir.capture import capture
from planish.ir.graph import Graph
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph


@dataclass
class Case:
    model: nn.Module
    graph: Graph
    groups: Groups

    def masks(self, group: int) -> dict[str, torch.Tensor]:
        """Parameter -> 1 where the group owns the entry."""
        index, found = self.groups.index, {}
        for name, parameter in self.graph.parameters.items():
            owned = np.zeros(parameter.shape, bool)
            for position, dim in enumerate(index.weights[name]):
                if position == 1 and name in index.blocked:
                    inside = self.groups.number[index.blocked[name]] == group
                    rows = np.repeat(inside, len(owned) // len(inside), axis=0)
                    owned |= rows.reshape(*rows.shape, *[1] * (owned.ndim - 2))
                else:
                    inside = self.groups.number[dim] == group
                    owned |= inside.reshape([-1 if d == position else 1 for d in range(owned.ndim)])
            found[name] = torch.from_numpy(owned).double()
        return found


class Residual(nn.Module):
    """A stream that a square layer reads and writes: a group owns diagonal entries of `inner` along both dims."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.last(x + torch.tanh(self.inner(x)))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), (5,)),
    "residual": (Residual, (5,)),
    "grouped": (grouped, (3, 4, 4)),
}


def make_case(name: str) -> Case:
    """A case of one's own."""
    model, graph = _captured(name)
    graph = graph.copy()
    return Case(copy.deepcopy(model), graph, Groups(IndexGraph(graph)))


@cache
def _captured(name: str) -> tuple[nn.Module, Graph]:
    make, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
        return model, capture(model, torch.randn(2, *shape, dtype=torch.float64))


def make_batches(name: str, count: int, size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = MODELS[name][1]
    return [
        (
            torch.randn(size, *shape, generator=generator, dtype=torch.float64),
            torch.randint(3, (size,), generator=generator),
        )
        for _ in range(count)
    ]
