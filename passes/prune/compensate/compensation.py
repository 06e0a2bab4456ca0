"""Compensation: with unlabelled data, what is left of a model takes over what the removed channels did."""

from typing import Any

import numpy as np
import torch

from ....ir import rewrite
from ....ir.errors import UsageError
from ....ir.graph import Graph
from ...base import Context, Skip
from ...pipeline_text import did_you_mean
from ..index.index_graph import IndexGraph
from .adjustments import correct_bias, reconstruct, reestimate, why_not_reconstructed
from .comparison import Comparison
from .places import Place, find_places

METHODS = ("bias", "reconstruct", "batch-norm")


def compensate(
    whole: Graph, graph: Graph, index: IndexGraph, alive: np.ndarray, ctx: Context, methods: tuple[str, ...]
) -> dict[str, Any]:
    """Adjust a cut graph in place so that its layers give on the data what they gave before the cut.

    whole    a copy of the graph before the cut, in eval form; nodes have the same names
    graph    the graph that `index` describes, now cut, in eval form
    alive    for every atom whether it survived
    methods  any of `METHODS`. With `bias` and `reconstruct`, what cannot be reconstructed has its bias corrected.

    Layers are visited in the order of the graph, each on what the adjusted layers before it give now, against what the
    whole graph gave: later layers also make up for what earlier ones could not. Activations are held from one layer to
    the next only as far as they fit a bound (1 GiB); with more data the graphs are run again.

    Returns facts for the report: for every layer how it was adjusted and the mean squared error of its output over the
    output's variance [before, after], and where nothing was done, with the reason. Raises UsageError for an unknown
    method and for what `Context.batches` refuses.
    """
    check_methods("compensate", methods)
    places, skipped = find_places(whole, graph, index, alive, methods)
    work, layers = Comparison(whole, graph, index, alive, ctx), []
    with torch.no_grad():
        for place in ctx.progress(places, "compensation"):
            done = _adjust(work, place, methods)
            if isinstance(done, str):
                skipped.append(Skip.at(place.node, done))
            else:
                layers.append({"layer": place.layer, **done})
    rewrite.finish(graph)
    return {"methods": list(methods), "layers": layers, "skipped": [[skip.where, skip.why] for skip in skipped]}


def check_methods(where: str, methods: tuple[str, ...]) -> None:
    """Raises UsageError for a name that is no method."""
    for method in methods:
        if method not in METHODS:
            hint = did_you_mean(method, METHODS) or f"it has: {', '.join(METHODS)}"
            raise UsageError(where, f"unknown compensation '{method}'", hint)


def _adjust(work: Comparison, place: Place, methods: tuple[str, ...]) -> dict[str, Any] | str:
    """What was done at a place, or why nothing was."""
    if place.is_batch_norm:
        return reestimate(work, place)
    reason = why_not_reconstructed(work.graph, place) if "reconstruct" in methods else None
    if "reconstruct" in methods and reason is None:
        return reconstruct(work, place)
    if "bias" in methods:
        return correct_bias(work, place)
    return reason or "no method applies"
