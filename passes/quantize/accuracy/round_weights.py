"""round-weights: learn for each weight whether it is rounded up or down."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....ir import rewrite
from ....ir.errors import PassError, UsageError
from ....ir.graph import Graph
from ....ir.ops import TRANSPOSED_CONVS, arguments, is_op
from ...base import Context, Pass, Result, Skip
from ...layers.side_by_side import SideBySide
from ...selectors import select
from ...train.random_streams import derived_seed
from .epilogue import epilogue_of
from .reference import Layer, float_form, quantized_layers, shift_bias, why_not_own
from .refit import refit
from .rounding import Budget, Problem, learn_rounding
from .rows import Rows, groups_of, sample_rows
from .weight_scales import search_scales


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Move every quantized weight onto its integer grid, up or down as is best for the layer's output (AdaRound).

    before:  %wq = fake_quantize(w, w_scale, ...);  %y = conv2d(%xq, %wq, b)
    after:   the same calls; w holds multiples of w_scale, so that fake_quantize changes nothing; b is fitted
    skips:   a transposed conv: its outputs overlap; scales that are not one per channel; a weight that is shared or
             computed; a layer where what was learned does worse than rounding to nearest on data held out

    One layer after the other learns, on a sample of its inputs as the quantized layers before it give them, to give
    what the float layer gave, behind its clip. A fifth of the data is held out. Needs some hundred samples without
    labels. What a second `calibrate` would find in weights on the grid are other scales: calibrate before.

    Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020, arXiv:2004.10568.

    Raises UsageError for what the data are refused for, and an option out of range.
    """

    name: ClassVar[str] = "round-weights"
    requires: ClassVar[frozenset[str]] = frozenset({"calibrated"})
    provides: ClassVar[frozenset[str]] = frozenset({"weights-rounded"})
    refuses: ClassVar[frozenset[str]] = frozenset({"weights-rounded", "bias-corrected"})
    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    iterations: int = 200
    """Steps of learning per layer."""
    rows: int = 8192
    """Positions of the output, over all data, that a layer learns from; fewer where they would take over 256 MiB."""
    rate: float = 0.1
    """The learning rate."""
    pressure: float = 1.0
    """How hard weights are driven to either end, against the error of the output."""
    scales: str = "search"
    """search: before rounding, each channel's scale becomes the one whose nearest rounding changes the output least.
    keep: scales stay as calibrate set them."""
    refit: bool = True
    """Before rounding, fit each layer's weight by least squares to the inputs that quantized layers give it."""
    only: tuple[str, ...] = ()
    """Only these layers: names or patterns of weights, layers or blocks. All where none is given."""

    def __post_init__(self) -> None:
        for label in ("iterations", "rows"):
            if getattr(self, label) < 1:
                raise UsageError(self.name, f"'{label}' is {getattr(self, label)}", "expected 1 or more")
        for label in ("rate", "pressure"):
            if not getattr(self, label) > 0:
                raise UsageError(self.name, f"'{label}' is {getattr(self, label):g}", "expected over 0")
        if self.scales not in ("search", "keep"):
            raise UsageError(self.name, f"'scales' is '{self.scales}'", "expected search or keep")

    def run(self, graph: Graph, ctx: Context) -> Result:
        was_training = graph.module.training
        graph.eval()
        try:
            return self._run(graph, ctx)
        finally:
            graph.train(was_training)

    def _run(self, graph: Graph, ctx: Context) -> Result:
        whole = float_form(graph)
        samples = sum(len(inputs[0]) for inputs in ctx.batches(graph, self.name))
        both = SideBySide(whole, graph, ctx, self.name)
        facts: list[dict[str, Any]] = []
        skipped: list[Skip] = []
        layers = list(self._layers(graph, whole, skipped))
        for number, layer in enumerate(ctx.progress(layers, self.name)):
            if not ctx.fuel.take():
                break
            generator = torch.Generator().manual_seed(derived_seed(ctx.seed, number))
            with torch.no_grad():
                rows, held_out = sample_rows(both, layer, samples, self.rows, generator)
                found = self._round(graph, layer, rows, held_out)
            facts.append({"layer": layer.name, **found})
            if not found["learned"]:
                skipped.append(Skip.at(layer.product, "rounding to nearest is better on the data held out"))
        rewrite.finish(graph)
        return Result(len(facts), tuple(skipped), {"layers": facts})

    def _layers(self, graph: Graph, whole: Graph, skipped: list[Skip]) -> Iterator[Layer]:
        layers = quantized_layers(graph, whole)
        chosen = select((x.weight for x in layers), self.only, self.name, "only") if self.only else None
        for layer in layers:
            if chosen is not None and layer.weight not in chosen:
                continue
            if is_op(layer.product, *TRANSPOSED_CONVS):
                skipped.append(Skip.at(layer.product, "outputs of a transposed conv overlap: it is rounded to nearest"))
            elif layer.quantizer is None:
                skipped.append(Skip.at(layer.product, "its scales are not one per channel"))
            elif why := why_not_own(graph, layer.product):
                skipped.append(Skip.at(layer.product, why))
            else:
                yield layer

    def _round(self, graph: Graph, layer: Layer, rows: Rows, held_out: Rows | None) -> dict[str, Any]:
        """Round one layer in the graph; facts for the report."""
        given = _problem(graph, layer)
        problem, judges = given, held_out or rows
        if self.refit and held_out is not None:
            problem = refit(problem, rows, held_out)
        else:
            problem = problem.with_best_bias(problem.weight, rows)
        if self.scales == "search":
            problem = search_scales(graph, layer, problem, rows)
        budget = Budget(self.iterations, rate=self.rate, pressure=self.pressure)
        candidates = {True: learn_rounding(problem, rows, budget), False: problem.nearest()}
        tries = {how: problem.with_best_bias(levels * problem.scale, rows) for how, levels in candidates.items()}
        errors = {how: tried.error(candidates[how] * tried.scale, judges) for how, tried in tries.items()}
        learned = errors[True] <= errors[False]
        _write(graph, layer, tries[learned], candidates[learned])
        variance = float(given.epilogue(judges.wanted).double().var(1, correction=0).sum()) or 1.0
        before = given.error(given.nearest() * given.scale, judges)
        moved = float((candidates[learned] != candidates[False]).double().mean())
        return {"learned": learned, "moved": moved, "error": [before / variance, errors[learned] / variance]}


def _problem(graph: Graph, layer: Layer) -> Problem:
    assert layer.quantizer is not None
    call, groups = arguments(layer.quantizer), groups_of(layer.product)
    weight = graph.weight(layer.weight).detach()
    bias = arguments(layer.product).bias
    held = graph.weight(bias).detach() if bias is not None else weight.new_zeros(len(weight))
    grouped = weight.flatten(1).unflatten(0, (groups, -1))
    scale = graph.weight(call.scale).reshape(groups, -1, 1)
    return Problem(grouped, scale, int(call.quant_max), held.reshape(groups, -1), epilogue_of(graph, layer))


def _write(graph: Graph, layer: Layer, problem: Problem, levels: torch.Tensor) -> None:
    """Put levels, scales and bias into the graph. Fake-quant must give exactly these levels."""
    assert layer.quantizer is not None
    weight, quantizer = graph.weight(layer.weight), arguments(layer.quantizer)
    scale = problem.scale.reshape(-1)
    on_grid = (levels * problem.scale).reshape(weight.shape)
    rewrite.set_weight(graph, layer.weight, on_grid)
    rewrite.set_weight(graph, str(quantizer.scale.target), scale)
    bias = arguments(layer.product).bias
    old = graph.weight(bias).detach().reshape(-1) if bias is not None else torch.zeros_like(scale)
    if not torch.equal(problem.bias.reshape(-1), old):
        shift_bias(graph, layer.product, problem.bias.reshape(-1) - old)
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    limits = quantizer.axis, quantizer.quant_min, quantizer.quant_max
    given = torch.fake_quantize_per_channel_affine(on_grid, scale, zeros, *limits)
    if not torch.equal(given, on_grid):
        raise PassError(layer.name, "fake-quant moves a weight that was put on the grid", "report this graph")
