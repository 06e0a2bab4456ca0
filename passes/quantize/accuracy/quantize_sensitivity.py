"""quantize-sensitivity: how much worse the float model gets when one layer alone is quantized, at each precision."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ....ir.errors import UsageError
from ....ir.graph import Graph
from ...base import Context, Pass, Result, Skip
from ...measure import Measure, measure_for
from ...selectors import select
from .reference import float_form, quantized_layers
from .returned import at_width


@dataclass(frozen=True)
class QuantizeSensitivity(Pass):
    """Measure every layer's tolerance of quantization; the graph stays as it is.

    before:  %y = conv2d(%xq, %wq, b)
    after:   the same, and a table, worst layers first: with this layer alone quantized, to 8, 4 ... bits, the loss is
    skips:   a layer whose scales are not one per channel

    A layer's weight and its input are quantized, all else is float. Inputs keep their calibrated scale; weights of
    other widths get the calibrated scale times the share of levels. What is measured is the context's `evaluate`; else
    the mean `loss` over labelled data; else the mean squared difference of the outputs to the float model's. The data
    run once per layer and width.
    """

    name: ClassVar[str] = "quantize-sensitivity"
    requires: ClassVar[frozenset[str]] = frozenset({"calibrated"})
    refuses: ClassVar[frozenset[str]] = frozenset({"weights-rounded", "bias-corrected"})  # there is no float model left

    bits: tuple[int, ...] = (8, 4)
    """Widths of the weights to measure, each 2 to 8."""
    only: tuple[str, ...] = ()
    """Only these layers: names or patterns of weights, layers or blocks. All where none is given."""

    def __post_init__(self) -> None:
        if not self.bits or not all(2 <= width <= 8 for width in self.bits):
            what = f"'bits' is {', '.join(map(str, self.bits)) or 'empty'}"
            raise UsageError(self.name, what, "expected widths of 2 to 8")

    def run(self, graph: Graph, ctx: Context) -> Result:
        work = graph.copy().eval()  # measured in eval form; `graph` is not touched
        whole = float_form(work)
        measure = measure_for(whole, ctx, self.name)
        layers = quantized_layers(work, whole)
        if self.only:
            chosen = select((layer.weight for layer in layers), self.only, self.name, "only")
            layers = [layer for layer in layers if layer.weight in chosen]
        skipped = [Skip.at(x.product, "its scales are not one per channel") for x in layers if x.quantizer is None]
        layers = [layer for layer in layers if layer.quantizer is not None]
        rows = []
        wanted = [(layer, width) for layer in layers for width in self.bits]
        values: dict[tuple[str, int], float] = {}
        for layer, width in ctx.progress(wanted, self.name):
            alone = float_form(work, frozenset(layer.quantizers))
            values[layer.name, width] = measure.of(at_width(alone, layer, width))
        for layer in layers:
            rows.append({"layer": layer.name, "values": [values[layer.name, width] for width in self.bits]})
        baseline = measure.of(whole)
        return Result(0, tuple(skipped), self._details(_worst_first(rows, measure), measure, baseline))

    def _details(self, rows: list[dict[str, Any]], measure: Measure, baseline: float) -> dict[str, Any]:
        table = {
            "title": f"{measure.name} with one layer quantized; {baseline:.4g} in float",
            "columns": ["layer", *(f"{width} bits" for width in self.bits)],
            "rows": [[row["layer"], *(f"{value:.4g}" for value in row["values"])] for row in rows],
        }
        facts = {"measure": measure.name, "higher_is_better": measure.higher_is_better, "baseline": baseline}
        return {**facts, "bits": list(self.bits), "layers": rows, "table": table}


def _worst_first(rows: list[dict[str, Any]], measure: Measure) -> list[dict[str, Any]]:
    """By the last width, which is usually the smallest."""
    return sorted(rows, key=lambda row: row["values"][-1], reverse=not measure.higher_is_better)
