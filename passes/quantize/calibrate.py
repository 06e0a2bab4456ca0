"""calibrate: run data through the graph once and set the scale of every quantizer."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from ...ir import rewrite
from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.ops import arguments, describe, is_op
from ..base import Context, Pass, Result, Skip
from ..pipeline_text import did_you_mean
from .collect import collect, scale_name
from .noise import signal_to_noise
from .observers import OBSERVERS, MinMax, Observer, ObserverOptions
from .placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER
from .rules import Role, Roles, data_inputs
from .scales import affine, symmetric


@dataclass(frozen=True)
class Calibrate(Pass):
    """Set every quantizer's scale and zero point: activations from the data, weights from themselves.

    before:  fake_quantize(%x, x.activation_scale = inf, ...)
    after:   fake_quantize(%x, x.activation_scale = 0.0187, ...)
    skips:   an activation that is zero in all the data; weight channels that met the floor of their scale

    The data runs once, through the float model (quantizers are bypassed), for all observers. The report holds each
    quantizer's scale, zero point, range and the signal to noise of the quantized model up to it, in decibels.

    Raises UsageError for no data, an empty loader, a wrong shape, and NaN or infinity, naming the layer.
    """

    name: ClassVar[str] = "calibrate"
    requires: ClassVar[frozenset[str]] = frozenset({"fake-quant"})
    provides: ClassVar[frozenset[str]] = frozenset({"calibrated"})
    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    observer: str = "min-max"
    """min-max, moving-average or percentile."""
    percentile: float = 99.99
    """For `percentile`: per cent of the values inside either end of the range, over 50 up to 100."""
    momentum: float = 0.1
    """For `moving-average`: the weight of each new batch, over 0 up to 1."""

    def __post_init__(self) -> None:
        if self.observer not in OBSERVERS:
            hint = did_you_mean(self.observer, OBSERVERS) or f"known: {', '.join(OBSERVERS)}"
            raise UsageError(self.name, f"unknown observer '{self.observer}'", hint)
        if not 50 < self.percentile <= 100:
            raise UsageError(self.name, f"'percentile' is {self.percentile:g}", "expected over 50 and up to 100")
        if not 0 < self.momentum <= 1:
            raise UsageError(self.name, f"'momentum' is {self.momentum:g}", "expected over 0 and up to 1")

    def run(self, graph: Graph, ctx: Context) -> Result:
        was_training = graph.module.training
        graph.eval()
        try:
            return self._run(graph, ctx)
        finally:
            graph.train(was_training)

    def _run(self, graph: Graph, ctx: Context) -> Result:
        options = ObserverOptions(self.percentile, self.momentum)
        observers = {scale_name(q): OBSERVERS[self.observer](None, options) for q in graph.calls(ACTIVATION_QUANTIZER)}
        run = collect(graph, ctx, self.name, observers)
        settings = _Settings(graph, Roles(graph))
        activations = [settings.set_activation(q, observers[scale_name(q)]) for q in graph.calls(ACTIVATION_QUANTIZER)]
        weights = [settings.set_weight(q) for q in graph.calls(WEIGHT_QUANTIZER)]
        rewrite.finish(graph)
        decibels, output = signal_to_noise(graph, run.sample)
        for entry in activations:
            entry["snr_db"] = decibels[entry["quantizer"]]
        details = {
            "observer": self.observer,
            "batches": run.batches,
            "activations": activations,
            "weights": weights,
            "output_snr_db": output,
        }
        return Result(settings.changed, tuple(settings.notes), details)


@dataclass
class _Settings:
    """Writes scales and zero points into the graph and remembers what is worth saying."""

    graph: Graph
    roles: Roles
    changed: int = 0
    notes: list[Skip] = field(default_factory=list)

    def set_activation(self, quantizer: fx.Node, observer: Observer) -> dict[str, Any]:
        call = arguments(quantizer)
        low, high = map(float, observer.range())
        scale, zero_point = affine(low, high, call.quant_min, call.quant_max)
        if low == high == 0.0:
            self.notes.append(Skip.at(call.self, "it is zero in all the data; its scale is 1"))
        self._set(quantizer, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32))
        return {
            "quantizer": quantizer.name,
            "layer": call.self.name,
            "where": describe(call.self),
            "scale": scale,
            "zero_point": zero_point,
            "low": low,
            "high": high,
        }

    def set_weight(self, quantizer: fx.Node) -> dict[str, Any]:
        call = arguments(quantizer)
        watch = MinMax(call.axis)
        watch.observe(self.graph.weight(call.self))
        watch.end_batch()
        scale, floored = symmetric(*watch.range(), call.quant_max, *self._bias_and_input_scale(quantizer))
        if floored:
            dead = f"{floored} of {len(scale)} channels are nearly zero; their scale is raised to its floor"
            self.notes.append(Skip(f"weight '{call.self.target}'", dead))
        self._set(quantizer, scale, torch.zeros(len(scale), dtype=torch.int32))
        return {
            "weight": str(call.self.target),
            "channels": len(scale),
            "smallest_scale": float(scale.min()),
            "largest_scale": float(scale.max()),
            "floored": floored,
        }

    def _bias_and_input_scale(self, quantizer: fx.Node) -> tuple[torch.Tensor | None, float]:
        """What the product's integer bias is made from. Activations must have their scales by now."""
        (product,) = quantizer.users
        bias = arguments(product).bias
        (read,) = data_inputs(product)
        while self.roles[read] in (Role.PASS, Role.JOIN) and not is_op(read, ACTIVATION_QUANTIZER):
            read = data_inputs(read)[0]
        if bias is None or not is_op(read, ACTIVATION_QUANTIZER):
            return None, 1.0
        return self.graph.weight(bias), float(self.graph.weight(scale_name(read)))

    def _set(self, quantizer: fx.Node, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
        call = arguments(quantizer)
        old = self.graph.weight(call.scale), self.graph.weight(call.zero_point)
        if not (torch.equal(old[0], scale) and torch.equal(old[1], zero_point)):
            self.changed += 1
            rewrite.set_weight(self.graph, call.scale.target, scale)
            rewrite.set_weight(self.graph, call.zero_point.target, zero_point)
