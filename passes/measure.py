"""How good a graph is: the user's own evaluation, else the loss on labelled data, else how far its outputs moved."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..ir.errors import UsageError
from ..ir.graph import Graph
from .base import Context
from .forward import forward
from .loss import loss_of


@dataclass(frozen=True)
class Measure:
    """What is measured, in which direction it is better, and how.

    of   Graph -> float. Raises UsageError for NaN, infinity and bad data.
    """

    name: str
    higher_is_better: bool
    of: Callable[[Graph], float]


def measure_for(graph: Graph, ctx: Context, where: str) -> Measure:
    """`ctx.evaluate` where there is one; else the mean loss over labelled batches; else the mean squared difference of
    the outputs to those of `graph`. Batches count alike.

    Raises UsageError where the context has neither an evaluation nor data, or data that can be read only once.
    """
    if ctx.evaluate is not None:
        return Measure("score", True, lambda other: _score(other, ctx, where))
    if ctx.data is None:
        what = "there is nothing to measure with"
        raise UsageError(where, what, "pass evaluate=function, or data=loader of (inputs, labels) or of inputs")
    if _is_labelled(graph, ctx.data, where):
        return Measure("loss", False, lambda other: _mean_loss(other, ctx, where))
    return difference_from(graph, ctx, where)


def difference_from(graph: Graph, ctx: Context, where: str) -> Measure:
    """The mean squared difference of a graph's outputs to those of `graph` over the data. Batches count alike."""
    outputs = [_outputs(graph, inputs) for inputs in ctx.batches(graph, where)]
    return Measure("squared difference of outputs", False, lambda other: _difference(other, outputs, ctx, where))


def _is_labelled(graph: Graph, data: Any, where: str) -> bool:
    if isinstance(data, torch.Tensor):
        return False
    batches = iter(data)
    if batches is data:
        raise UsageError(where, "the data can be read only once", "give a list or a loader that starts anew")
    first = next(batches, None)
    return isinstance(first, (tuple, list)) and len(first) == len(graph.inputs) + 1


def _score(graph: Graph, ctx: Context, where: str) -> float:
    assert ctx.evaluate is not None
    value = float(ctx.evaluate(graph))
    if not math.isfinite(value):
        raise UsageError(where, f"the evaluation gives {value:g}", "expected a finite number, higher is better")
    return value


def _mean_loss(graph: Graph, ctx: Context, where: str) -> float:
    with torch.no_grad():
        return _mean(
            float(loss_of(ctx.loss, forward(graph, inputs), labels, f"{where}, batch {number}"))
            for number, (inputs, labels) in enumerate(ctx.labelled_batches(graph, where), start=1)
        )


def _difference(graph: Graph, expected: list[list[torch.Tensor]], ctx: Context, where: str) -> float:
    batches = zip(ctx.batches(graph, where), expected, strict=True)
    return _mean(_squared_difference(_outputs(graph, inputs), whole) for inputs, whole in batches)


def _outputs(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(forward(graph, inputs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _squared_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The mean over all elements of all outputs, in float64."""
    pairs = zip(found, expected, strict=True)
    total = sum(float((one.double() - other.double()).square().sum()) for one, other in pairs)
    return total / max(sum(other.numel() for other in expected), 1)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
