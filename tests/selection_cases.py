"""Small captured models for tests of the selection, and a selection in one call."""

from functools import cache

import numpy as np
import torch
from models import EXAMPLES
from torch import Tensor, nn
from torch.nn import functional

from planish.ir.capture import capture
from planish.ir.graph import Graph
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.score.importance import importance
from planish.passes.prune.select.choose import Choice, choose
from planish.passes.prune.select.request import Request


class Attention(nn.Module):
    """Six query heads on three key heads: the attention's MACs are a sum of two products."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 24), nn.Linear(6, 12), nn.Linear(6, 12)
        self.out = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        heads = [p(x).unflatten(2, (-1, 4)).transpose(1, 2) for p in (self.query, self.key, self.value)]
        y = functional.scaled_dot_product_attention(*heads, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Halves(nn.Module):
    """Half of the channels of one layer pass through a value of their own: groups of one family that differ there."""

    def __init__(self):
        super().__init__()
        self.make, self.read = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.make(x).split([10, 6], 1)
        return self.read(
            torch.cat([functional.interpolate(torch.sigmoid(first), scale_factor=2)[..., ::2, ::2], second], 1)
        )


class Grouped(nn.Module):
    """A grouped conv, a depthwise one with a multiplier and a transposed one."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 24, 3, padding=1, groups=4),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, groups=24),
            nn.ConvTranspose2d(48, 12, 2, stride=2, groups=2),
            nn.Conv2d(12, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Buffered(nn.Module):
    """Tied weights, a buffer per channel and a batch norm with statistics."""

    def __init__(self):
        super().__init__()
        self.make, self.again, self.read = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.read.weight = self.again.weight
        self.register_buffer("mask", torch.ones(8, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.relu(self.make(x))) * self.mask.float()
        return self.head(self.read(torch.relu(self.again(y))))


MODELS = {
    **EXAMPLES,
    "attention": (Attention, (5, 6)),
    "halves": (Halves, (3, 8, 8)),
    "grouped": (Grouped, (3, 8, 8)),
    "buffered": (Buffered, (6,)),
}


@cache
def captured(name: str) -> Graph:
    make, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(make(), torch.randn(2, *shape))


def groups_of(name: str) -> Groups:
    """Groups of a graph of their own, which a test may cut."""
    return Groups(IndexGraph(captured(name).copy()))


@cache
def ranked(name: str) -> tuple[Groups, np.ndarray]:
    """Groups and their l1 scores, for tests that do not cut."""
    groups = Groups(IndexGraph(captured(name)))
    return groups, importance(groups, "l1")


def chosen(name: str, scope: str = "layer", **options) -> Choice:
    groups, scores = ranked(name)
    return choose(groups, scores, Request.of(groups, scope, **options))


def survivors(name: str, choice: Choice) -> dict[str, int]:
    return {f.layer: int(n) for f, n in zip(ranked(name)[0].families, choice.survivors, strict=True)}
