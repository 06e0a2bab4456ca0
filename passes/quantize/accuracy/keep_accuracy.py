"""keep-accuracy: return the worst layers to float until the model is as good as asked."""

from dataclasses import dataclass
from typing import ClassVar

from ....ir import rewrite
from ....ir.errors import PassError, UsageError
from ....ir.graph import Graph
from ...base import Context, Pass, Result
from ...measure import difference_from, measure_for
from .reference import Layer, float_form, quantized_layers
from .returned import without


@dataclass(frozen=True)
class KeepAccuracy(Pass):
    """Take the quantizers of the fewest layers out so that the score drops by no more than `drop`.

    before:  %y = conv2d(%xq, %wq, b)
    after:   %y = conv2d(%x, w, b)     in the layers that cost the score most
    skips:   nothing: where even the float model misses the score, the pass fails

    Layers are ranked by how far the model's outputs move on the data when each alone is quantized. Then their number
    is searched by bisection: the score is taken to rise with every layer that returns to float. The data run once per
    layer, `evaluate` some six times.

    Raises PassError where the float model itself does not reach the score.
    """

    name: ClassVar[str] = "keep-accuracy"
    requires: ClassVar[frozenset[str]] = frozenset({"calibrated"})
    refuses: ClassVar[frozenset[str]] = frozenset({"weights-rounded", "bias-corrected"})  # there is no float model left
    needs: ClassVar[frozenset[str]] = frozenset({"data", "evaluate"})

    drop: float = 0.01
    """How much lower than in float the score may be, in the units of `evaluate`."""

    def __post_init__(self) -> None:
        if not self.drop >= 0:
            raise UsageError(self.name, f"'drop' is {self.drop:g}", "expected 0 or more")

    def run(self, graph: Graph, ctx: Context) -> Result:
        if not ctx.fuel.take():
            return Result(0)
        was_training = graph.module.training
        graph.eval()
        try:
            return self._run(graph, ctx)
        finally:
            graph.train(was_training)

    def _run(self, graph: Graph, ctx: Context) -> Result:
        whole = float_form(graph)
        score = measure_for(whole, ctx, self.name)
        base = score.of(whole)
        least = base - self.drop
        quantized = score.of(graph)
        ranked: list[Layer] = []
        counts, scores = (0, 0), {0: quantized}
        if quantized < least:
            ranked = self._ranked(graph, whole, ctx)
            counts = (0, len(ranked))
            scores[len(ranked)] = score.of(without(graph.copy(), ranked))
            if scores[len(ranked)] < least:
                what = f"with all layers in float the score is {scores[len(ranked)]:g}, {least:g} is wanted"
                raise PassError(self.name, what, "allow a greater 'drop'")
        low, high = counts
        while high - low > 1:  # low layers in float are too few, high are enough
            middle = (low + high) // 2
            scores[middle] = score.of(without(graph.copy(), ranked[:middle]))
            low, high = (low, middle) if scores[middle] >= least else (middle, high)
        names = [layer.name for layer in ranked[:high]]
        without(graph, ranked[:high])
        rewrite.finish(graph)
        facts = {"float": base, "quantized": quantized, "reached": scores[high], "returned": names}
        return Result(high, (), {**facts, "tried": [[count, scores[count]] for count in sorted(scores)]})

    def _ranked(self, graph: Graph, whole: Graph, ctx: Context) -> list[Layer]:
        """The quantized layers, those first that alone move the outputs most."""
        moved = difference_from(whole, ctx, self.name)
        layers = quantized_layers(graph, whole)
        costs = {}
        for layer in ctx.progress(layers, self.name):
            alone = float_form(graph, frozenset(layer.quantizers))
            costs[layer] = moved.of(alone)
        return sorted(layers, key=lambda layer: -costs[layer])
