"""Penalties that make training sparse by whole groups, so that a cut later costs less.

Each is a function of the weights as they are and of the step, and has its gradient from autograd.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import fx

from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.ops import arguments
from ..base import Context
from ..prune.groups import Groups
from ..prune.index.index_graph import IndexGraph
from ..prune.score.slices import not_counted_before, weight_slices
from .removal import parse_removal, removed_entries

if TYPE_CHECKING:
    from .finetune import Finetune

GROWTH_LIMIT = 1.0  # of the growing penalty's factor, as in the paper


class Regularizer(Protocol):
    """What is added to the loss at a step (from 0): a scalar tensor that gradients flow through."""

    def __call__(self, step: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class _Part:
    """One weight's share in the squares of groups: sum over `rest`, then add to the group of each index."""

    weight: torch.Tensor
    shape: tuple[int, ...]
    rest: tuple[int, ...]
    group: torch.Tensor
    counted: torch.Tensor | None


class GroupLasso:
    """strength * sum over groups of sqrt(n_g) ||w_g||, over all n_g entries that a prunable group owns anywhere.

    Yuan and Lin, "Model Selection and Estimation in Regression with Grouped Variables", 2006; for channels Wen et al.,
    "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016. An entry that a row's and a column's group own
    counts for both; its gradient at a group of zeros is 0.
    """

    def __init__(self, groups: Groups, strength: float, device: torch.device):
        self.strength, self.count = strength, groups.count
        self.parts = list(_parts(groups, device))
        size = self._sums(lambda weight: torch.ones_like(weight))
        self.root_size = size.sqrt()

    def __call__(self, step: int) -> torch.Tensor:
        squares = self._sums(torch.square)
        positive = squares > 0
        norms = torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)  # sqrt has no gradient at 0
        return self.strength * (self.root_size * norms).sum()

    def _sums(self, mass: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """[groups]: the sums of a function of the entries."""
        first = self.parts[0].weight
        total = torch.zeros(self.count + 1, dtype=first.dtype, device=first.device)  # the last: what no group owns
        for part in self.parts:
            value = mass(part.weight).reshape(part.shape)
            value = value if part.counted is None else value * part.counted
            by_index = value.sum(part.rest) if part.rest else value
            total = total.index_add(0, part.group, by_index.flatten().to(total.dtype))
        return total[:-1]


@dataclass(frozen=True)
class Slimming:
    """strength * sum of |scale| over the scales of all batch norms.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    """

    scales: tuple[torch.Tensor, ...]
    strength: float

    def __call__(self, step: int) -> torch.Tensor:
        return self.strength * torch.stack([scale.abs().sum() for scale in self.scales]).sum()


@dataclass(frozen=True)
class Growing:
    """factor / 2 * sum of w^2 over what will be removed; the factor grows by `strength` each `every` steps, up to 1.

    Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021 (GReg-1).
    """

    weights: tuple[torch.Tensor, ...]
    removed: tuple[torch.Tensor, ...]
    strength: float
    every: int

    def __call__(self, step: int) -> torch.Tensor:
        factor = min(self.strength * (1 + step // self.every), GROWTH_LIMIT)
        squares = [(w.square() * gone).sum() for w, gone in zip(self.weights, self.removed, strict=True)]
        return factor / 2 * torch.stack(squares).sum()


def _group_lasso(graph: Graph, options: "Finetune", ctx: Context) -> Regularizer:
    groups = Groups(IndexGraph(graph))
    if not groups.count:
        raise UsageError(options.name, "no channel of the model can be removed", "group-lasso has nothing to thin")
    return GroupLasso(groups, options.strength, next(iter(graph.weights.values())).device)


def _slimming(graph: Graph, options: "Finetune", ctx: Context) -> Regularizer:
    reads = [arguments(node).weight for node in graph.calls("batch_norm")]
    scales = {id(graph.weight(r)): graph.weight(r) for r in reads if isinstance(r, fx.Node) and r.op == "get_attr"}
    if not scales:
        what = "the model has no batch norm with a scale, which slimming thins"
        raise UsageError(options.name, what, "put 'finetune' before 'fold-batch-norm', or use group-lasso")
    return Slimming(tuple(scales.values()), options.strength)


def _growing(graph: Graph, options: "Finetune", ctx: Context) -> Regularizer:
    entries = removed_entries(graph, parse_removal(options.removal), ctx)
    parameters = {name: gone for name, gone in entries.items() if name in graph.parameters}
    if not parameters:
        raise UsageError(options.name, f"'removal' {options.removal!r} removes nothing", "ask for a smaller model")
    weights = tuple(graph.weight(name) for name in parameters)
    return Growing(weights, tuple(parameters.values()), options.strength, options.grow_every)


REGULARIZERS: Mapping[str, Callable[[Graph, "Finetune", Context], Regularizer]] = {
    "group-lasso": _group_lasso,
    "slimming": _slimming,
    "growing": _growing,
}


def _parts(groups: Groups, device: torch.device):
    for name, slices in weight_slices(groups).items():
        weight = groups.index.graph.weight(name)
        if not weight.is_floating_point():
            continue
        for position, part in enumerate(slices):
            counted = not_counted_before(slices, position)
            group = np.where(part.number >= 0, part.number, groups.count).ravel()
            yield _Part(
                weight,
                part.shape,
                tuple(d for d in range(len(part.shape)) if d not in part.kept),
                torch.from_numpy(group).to(device),
                None if counted is None else torch.from_numpy(counted).to(device),
            )
