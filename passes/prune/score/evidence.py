"""What criteria learn from data, gathered in one run over it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ....ir.errors import UsageError
from ....ir.graph import Graph
from ...base import Context
from .activations import Activations
from .criteria import CRITERIA, DERIVATIVES, entry_of
from .gradients import Gradients


@dataclass(frozen=True)
class Evidence:
    """What was seen in the data. Batches count alike, whatever their size.

    seed        of random scores
    batches     how many were seen
    quantities  "gradient", "squared-gradient", "curvature": parameter -> a float64 tensor of its shape, the mean over
                batches of the loss's gradient, of its square, of the squared weight times the diagonal of the Hessian;
                zeros where the loss does not reach. "activation", "zeros": layer's weight -> [channels], the mean
                magnitude of its output and the share of zeros in it, after the batch norm and activation that follow
    sums        not of data: what who scores the same weights twice remembers, (mass, weight, its slices) -> their sums
    """

    seed: int = 0
    batches: int = 0
    quantities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sums: dict[tuple, list[np.ndarray]] | None = None

    def of(self, quantity: str) -> Mapping[str, Any]:
        """Raises UsageError for a quantity that was not gathered."""
        if quantity not in self.quantities:
            what = f"there is no '{quantity}' in the evidence"
            raise UsageError("importance", what, "call gather(graph, ctx, criterion, where) for this criterion first")
        return self.quantities[quantity]


def gather(graph: Graph, ctx: Context, criterion: str | Iterable[str], where: str) -> Evidence:
    """What one criterion, or several at once, needs; data is read only if any needs it, and once.

    The graph runs in eval form and is left as it was: no gradients, the same mode, the same `requires_grad`; frozen
    parameters have gradients here too. Probes for the curvature come from `ctx.seed`.

    Raises UsageError for an unknown criterion, for data that is missing, empty, wrong in shape, without labels where
    gradients are needed or shorter than its own length, and for NaN or infinity, naming the batch and the weight.
    """
    names = [criterion] if isinstance(criterion, str) else list(criterion)
    wanted = frozenset().union(*(entry_of(CRITERIA, name, "importance").evidence for name in names))
    if not wanted:
        return Evidence(ctx.seed)
    with eval_form(graph):
        batches, quantities = _run(graph, ctx, wanted, where)
    return Evidence(ctx.seed, batches, quantities)


def _run(graph: Graph, ctx: Context, wanted: frozenset[str], where: str) -> tuple[int, dict[str, Mapping[str, Any]]]:
    activations = Activations(graph) if wanted - DERIVATIVES else None
    gradients = Gradients(graph, ctx, wanted & DERIVATIVES) if wanted & DERIVATIVES else None
    count = 0
    for count, (inputs, labels) in enumerate(ctx.progress(_batches(graph, ctx, bool(gradients), where), where), 1):
        place = f"{where}, batch {count}"
        if gradients is not None:
            gradients.observe(inputs, labels, place, activations)
        elif activations is not None:
            activations.observe(inputs, place)
    _check_complete(ctx.data, count, where)
    found = {**(activations.statistics() if activations else {}), **(gradients.means(count) if gradients else {})}
    return count, {name: found[name] for name in sorted(wanted)}


def _batches(graph: Graph, ctx: Context, labelled: bool, where: str) -> Iterator[tuple[tuple[torch.Tensor, ...], Any]]:
    if labelled:
        return ctx.labelled_batches(graph, where)
    return ((inputs, None) for inputs in ctx.batches(graph, where))


def _check_complete(data: Any, count: int, where: str) -> None:
    """A loader that ends before its own length has lost data on the way."""
    try:
        expected = 1 if isinstance(data, torch.Tensor) else len(data)
    except TypeError:  # an iterator, or a loader over a stream
        return
    if count < expected:
        what = f"the loader ended after {count} of its {expected} batches"
        raise UsageError(where, what, "check the data set", "scores of a part of the data would mislead")


@contextmanager
def eval_form(graph: Graph) -> Iterator[None]:
    """The graph in eval form for a while; its mode is restored."""
    was_training = graph.module.training
    if was_training:
        graph.eval()
    try:
        yield
    finally:
        if was_training:
            graph.train()
