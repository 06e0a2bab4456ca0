"""correct-bias: give every quantized layer the mean output that it had in float."""

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
from .reference import Layer, channel_dim, float_form, quantized_layers, shift_bias, why_not_own


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Add to each layer's bias what quantization took from its output on average over the data and all positions.

    before:  %y = conv2d(%xq, %wq, b)
    after:   %y = conv2d(%xq, %wq, b');  mean(%y) is that of the float layer, channel by channel
    skips:   a weight or bias that is shared or computed

    One layer after the other, each on what the corrected layers before it give. A layer without bias gets one. The
    float model is the graph with its quantizers bypassed, which a second run, or weights that round-weights moved,
    would make another one: both are refused. round-weights corrects biases itself.

    Source: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019,
    arXiv:1906.04721, section 4.2 and appendix D (empirical).

    Raises UsageError for what the data are refused for.
    """

    name: ClassVar[str] = "correct-bias"
    requires: ClassVar[frozenset[str]] = frozenset({"calibrated"})
    provides: ClassVar[frozenset[str]] = frozenset({"bias-corrected"})
    refuses: ClassVar[frozenset[str]] = frozenset({"weights-rounded", "bias-corrected"})
    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    how: str = "empirical"
    """empirical: means over the data. analytic, from batch-norm statistics, is refused: folding has used them up."""

    def __post_init__(self) -> None:
        if self.how != "empirical":
            what = f"'how' is '{self.how}'"
            reason = "analytic correction needs the statistics of batch norms, which folding used up"
            raise UsageError(self.name, what, "expected empirical", *([reason] if self.how == "analytic" else []))

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
        both = SideBySide(whole, graph, ctx, self.name)
        facts: list[dict[str, Any]] = []
        skipped: list[Skip] = []
        for layer in ctx.progress(quantized_layers(graph, whole), self.name):
            if why := why_not_own(graph, layer.product):
                skipped.append(Skip.at(layer.product, why))
            elif ctx.fuel.take():
                facts.append(_correct(both, layer))
        rewrite.finish(graph)
        return Result(len(facts), tuple(skipped), {"layers": facts})


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
