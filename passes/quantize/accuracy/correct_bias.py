"""correct-bias: give every quantized layer the mean output that it had in float."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....ir import rewrite
from ....ir.errors import UsageError
from ....ir.graph import Graph
from ...base import Context, Pass, Result, Skip
from ...layers.moments import Moments
from ...layers.patches import channel_last
from ...layers.side_by_side import SideBySide
from .analytic_bias import correct_from_statistics
from .batch_statistics import of_products
from .expectation import expectations
from .reference import Layer, channel_dim, float_form, quantized_layers, shift_bias, why_not_own

# Shifts the bias of a layer: facts about it, or why it cannot.
Correction = Callable[[Layer], dict[str, Any] | str]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Add to each layer's bias what quantization took from its output on average.

    before:  %y = conv2d(%xq, %wq, b)
    after:   %y = conv2d(%xq, %wq, b');  mean(%y) is that of the float layer, channel by channel
    skips:   a weight or bias that is shared or computed; analytic: an input whose mean no batch norm tells

    empirical: the average is over the data and all positions, one layer after the other, each on what the corrected
    layers before it give. analytic: the rounding of the weight times the mean of the input, which follows without data
    from the batch norm before, its bias and scale, through clips and other functions; batch norms that were folded are
    read in the context's `original` (by default the graph that the pipeline was given). It sees neither rounding nor
    saturation of activations.

    A layer without bias gets one. The float model is the graph with its quantizers bypassed, which a second run, or
    weights that round-weights moved, would make another one: both are refused. round-weights corrects biases itself.

    Source: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019,
    arXiv:1906.04721, section 4.2 and appendices C (analytic) and D (empirical).

    Raises UsageError for what the data are refused for, and for `analytic` of a model without batch norms.
    """

    name: ClassVar[str] = "correct-bias"
    requires: ClassVar[frozenset[str]] = frozenset({"calibrated"})
    provides: ClassVar[frozenset[str]] = frozenset({"bias-corrected"})
    refuses: ClassVar[frozenset[str]] = frozenset({"weights-rounded", "bias-corrected"})
    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    how: str = "empirical"
    """empirical: means over the data. analytic: means from the statistics of batch norms, without data."""

    def __post_init__(self) -> None:
        if self.how not in ("empirical", "analytic"):
            raise UsageError(self.name, f"'how' is '{self.how}'", "expected empirical or analytic")

    def needed(self) -> frozenset[str]:
        return self.needs if self.how == "empirical" else frozenset()

    def run(self, graph: Graph, ctx: Context) -> Result:
        was_training = graph.module.training
        graph.eval()
        try:
            with torch.no_grad():
                return self._run(graph, ctx)
        finally:
            graph.train(was_training)

    def _run(self, graph: Graph, ctx: Context) -> Result:
        whole = float_form(graph)
        correct = self._empirical(whole, graph, ctx) if self.how == "empirical" else self._analytic(whole, graph, ctx)
        facts: list[dict[str, Any]] = []
        skipped: list[Skip] = []
        for layer in ctx.progress(quantized_layers(graph, whole), self.name):
            if why := why_not_own(graph, layer.product):
                skipped.append(Skip.at(layer.product, why))
            elif ctx.fuel.take():
                found = correct(layer)
                if isinstance(found, str):
                    skipped.append(Skip.at(layer.product, found))
                else:
                    facts.append(found)
        rewrite.finish(graph)
        return Result(len(facts), tuple(skipped), {"layers": facts})

    def _empirical(self, whole: Graph, graph: Graph, ctx: Context) -> Correction:
        both = SideBySide(whole, graph, ctx, self.name)
        return lambda layer: _correct(both, layer)

    def _analytic(self, whole: Graph, graph: Graph, ctx: Context) -> Correction:
        original = ctx.original or whole
        if not (original.calls("batch_norm") or whole.calls("batch_norm")):
            what = "the model has no batch norm that tells the means of its values"
            advice = "set how=empirical and pass data, or pass the graph from before fold-batch-norm as 'original'"
            raise UsageError(self.name, what, advice)
        expected = expectations(whole, of_products(whole, original))
        return lambda layer: correct_from_statistics(graph, layer, expected)


def _correct(both: SideBySide, layer: Layer) -> dict[str, Any]:
    """Shift one layer's bias; its squared error over the output's variance, before and after."""
    lacking, whole = Moments(), Moments()
    for before, after in both.run_to(layer.twin, layer.product):
        wanted = both.before.evaluate(before, layer.twin)
        channel = channel_dim(layer.product, wanted.ndim)
        lacking.add(channel_last(wanted - both.after.evaluate(after, layer.product), channel))
        whole.add(channel_last(wanted, channel))
    shift_bias(both.graph, layer.product, lacking.mean)
    variance = float(whole.variance.sum()) or 1.0
    errors = [float(value.sum()) / variance for value in (lacking.mean_square, lacking.variance)]
    return {"layer": layer.name, "most": float(lacking.mean.abs().max()), "error": errors}
