"""calibrate: run data through the graph once and set the scale of every quantizer."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from ...ir import rewrite
from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.ops import arguments
from ..base import Context, Pass, Result, Skip
from ..pipeline_text import did_you_mean
from .collect import Collected, collect, refuse_broken_weights, scale_name
from .noise import signal_to_noise
from .observers import OBSERVERS, ObserverOptions, Statistics
from .observers.weights import WEIGHT_OBSERVERS
from .placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER
from .scales import Levels
from .settings import Settings
from .synthesis import synthesise

_DATA = ("loader", "synthesised", None)
_SAMPLES = 32
_SYNTHESISED = (
    "no data was used: activations were observed on images synthesised from batch-norm statistics, which are no "
    "substitute for real ones; check the accuracy"
)


@dataclass(frozen=True)
class Calibrate(Pass):
    """Set every quantizer's scale and zero point: activations from the data, weights from themselves.

    before:  fake_quantize(%x, x.activation_scale = inf, ...)
    after:   fake_quantize(%x, x.activation_scale = 0.0187, ...)
    skips:   an activation that is zero, or without elements, in all the data; an activation so small that its scale is
             raised to the least one; weight channels that met the floor of their scale; synthesised data

    The data runs once, through the float model (quantizers are bypassed). The report lists the quantizers, worst first:
    scale, zero point, range, the signal to noise of the quantized model up to it in decibels, and the share of its
    values that saturate, both on the first samples of the data.

    Raises UsageError for no data, a loader that is empty or has fewer than `samples`, a wrong shape, and NaN or
    infinity, naming the layer.
    """

    name: ClassVar[str] = "calibrate"
    requires: ClassVar[frozenset[str]] = frozenset({"fake-quant"})
    refuses: ClassVar[frozenset[str]] = frozenset({"weights-rounded"})  # their scales are part of what was learned
    provides: ClassVar[frozenset[str]] = frozenset({"calibrated"})
    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    data: str | None = "loader"
    """loader: activations are observed on compile(..., data=loader). synthesised: on images made up from the statistics
    of the original model's batch norms, where there are no data. none: weights alone have quantizers."""
    observer: str = "min-max"
    """min-max, moving-average, percentile, histogram, entropy or mean-squared-error."""
    scheme: str = "affine"
    """Of activations. affine: the levels cover the range. symmetric: the zero point is in their middle."""
    weight_observer: str = "min-max"
    """min-max or mean-squared-error."""
    samples: int | None = None
    """How many samples of the data to use; all if none. A loader with fewer is an error. Of synthesised data 32 if
    none."""
    iterations: int = 200
    """For `data=synthesised`: steps of gradient descent on the images."""
    percentile: float = 99.99
    """For `percentile`: per cent of the values inside either end of the range, over 50 up to 100."""
    momentum: float = 0.1
    """For `moving-average`: the weight of each new batch, over 0 up to 1."""

    def __post_init__(self) -> None:
        choices = {
            "data": _DATA,
            "observer": OBSERVERS,
            "scheme": ("affine", "symmetric"),
            "weight_observer": WEIGHT_OBSERVERS,
        }
        for label, known in choices.items():
            if (word := getattr(self, label)) not in known:
                hint = did_you_mean(str(word), filter(None, known)) or f"known: {', '.join(filter(None, known))}"
                raise UsageError(self.name, f"unknown {label.replace('_', '-')} '{word}'", hint)
        for label in ("samples", "iterations"):
            if (count := getattr(self, label)) is not None and count < 1:
                raise UsageError(self.name, f"'{label}' is {count}", "expected 1 or more")
        if not 50 < self.percentile <= 100:
            raise UsageError(self.name, f"'percentile' is {self.percentile:g}", "expected over 50 and up to 100")
        if not 0 < self.momentum <= 1:
            raise UsageError(self.name, f"'momentum' is {self.momentum:g}", "expected over 0 and up to 1")

    def needed(self) -> frozenset[str]:
        return self.needs if self.data == "loader" else frozenset()

    def run(self, graph: Graph, ctx: Context) -> Result:
        was_training = graph.module.training
        graph.eval()
        try:
            return self._run(graph, ctx)
        finally:
            graph.train(was_training)

    def _run(self, graph: Graph, ctx: Context) -> Result:
        quantizers = graph.calls(ACTIVATION_QUANTIZER)
        histogram = OBSERVERS[self.observer].needs_histogram
        seen = {scale_name(q): Statistics(None, histogram, self.momentum) for q in quantizers}
        refuse_broken_weights(graph, self.name)
        run = self._collect(graph, ctx, seen)
        settings = Settings(graph)
        ranges = {name: self._range(quantizers, name, statistics) for name, statistics in seen.items()}
        activations = [
            settings.set_activation(q, self._levels(q), *ranges[scale_name(q)], seen[scale_name(q)].values)
            for q in quantizers
        ]
        weights = [settings.set_weight(q, self.weight_observer) for q in graph.calls(WEIGHT_QUANTIZER)]
        settings.write()
        rewrite.finish(graph)
        noise, output = signal_to_noise(graph, run.sample) if seen else ({}, None)
        for entry in activations:
            entry["snr_db"] = noise[entry["quantizer"]].decibels
            entry["saturated"] = noise[entry["quantizer"]].saturated
        if seen and self.data == "synthesised":
            settings.notes.insert(0, Skip("calibrate", _SYNTHESISED))
        details = {
            "data": self.data or "none",
            "observer": self.observer,
            "batches": run.batches,
            "samples": run.samples,
            "activations": sorted(activations, key=_worst_first),
            "weights": weights,
            "output_snr_db": output,
        }
        return Result(settings.changed, tuple(settings.notes), details)

    def _collect(self, graph: Graph, ctx: Context, seen: dict[str, Statistics]) -> Collected:
        if not seen:
            return Collected()
        if self.data is None:
            what = f"'data' is none, but {len(seen)} scales of activations are to be set"
            raise UsageError(self.name, what, "give data, or set activations=none in insert-fake-quant")
        if self.data == "loader":
            return collect(graph, ctx, self.name, seen, self.samples)
        original = (ctx.original or graph).copy()  # batch norms are folded by now
        original.eval()
        images = synthesise(original, self.samples or _SAMPLES, self.iterations, ctx.seed, self.name, ctx.progress)
        return collect(graph, replace(ctx, data=images), self.name, seen)

    def _levels(self, quantizer: fx.Node) -> Levels:
        call = arguments(quantizer)
        return Levels(call.quant_min, call.quant_max, self.scheme == "symmetric")

    def _range(self, quantizers: list[fx.Node], name: str, seen: Statistics) -> tuple[float, float]:
        """Quantizers that share a scale share levels."""
        levels = next(self._levels(q) for q in quantizers if scale_name(q) == name)
        observer = OBSERVERS[self.observer](levels, ObserverOptions(self.percentile))
        low, high = observer.range(seen)
        return float(low), float(high)


def _worst_first(entry: dict[str, Any]) -> float:
    return float("inf") if entry["snr_db"] is None else entry["snr_db"]
