"""Scales of quantizers that are trained along with the weights, and what a graph may hold of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.ops import arguments, is_op
from ..quantize.placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER
from ..quantize.rules import Roles
from ..quantize.scales import SMALLEST_SCALE, short, symmetric
from ..quantize.settings import bias_and_input
from .step_size import Step

_SAVED = "|learned"  # behind a scale's name in checkpoints; no weight's name holds it
# A scale this much smaller has its whole 8-bit range in one of its former steps, one so much larger the reverse.
LARGEST_CHANGE = 2.0**8
# In one step of the optimizer. Its steps are absolute where gradients are large: without this a single batch sends the
# scale of a channel with small weights below zero, and a channel whose weights all saturate does not come back.
LARGEST_STEP = 1.02


@dataclass(frozen=True)
class Learned:
    """One quantizer's scale, under the name of its buffer: the buffer holds `unit` times `latent`, rounded.

    Quantizers that share a scale have the same latent parameter.
    """

    quantizer: fx.Node
    name: str
    latent: torch.nn.Parameter
    unit: torch.Tensor
    step: Step


class LearnedScales:
    """The scales of all quantizers of a calibrated graph as parameters. The graph itself holds buffers at all times.

    After each step of the optimizer `write` brings the buffers up to date: activation scales with few significant bits
    (see `short`), weight scales over the floors that keep integer biases sound. So the forward pass, `evaluate` and
    whoever reads the graph later see the same scales, and rounding them is part of what is trained, straight-through.

    relative: the parameter is the share of the calibrated scale, for optimizers whose steps do not depend on the
    gradient's size: LSQ's scaling of the gradient would be lost on them.
    """

    def __init__(self, graph: Graph, *, relative: bool):
        self._graph = graph
        self._roles = Roles(graph)
        self._relative = relative
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self._first: dict[str, torch.Tensor] = {}
        self.of = {node: self._learned(node) for node in graph.calls(ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER)}
        self._unique = {learned.name: learned for learned in reversed(self.of.values())}
        self._before = {name: latent.detach().clone() for name, latent in self.parameters.items()}

    def _learned(self, quantizer: fx.Node) -> Learned:
        call = arguments(quantizer)
        name = str(call.scale.target)
        if name not in self.parameters:
            first = self._graph.weight(name).detach().clone()
            self._first[name] = first
            self.parameters[name] = torch.nn.Parameter(torch.ones_like(first) if self._relative else first.clone())
        unit = self._first[name] if self._relative else torch.ones_like(self._first[name])
        step = Step(call.quant_min, call.quant_max)
        if is_op(quantizer, WEIGHT_QUANTIZER):
            step = replace(step, axis=call.axis)
        else:
            extents = call.self.meta["val"].shape
            step = replace(step, batched=bool(extents) and not isinstance(extents[0], int))
        return Learned(quantizer, name, self.parameters[name], unit, step)

    @torch.no_grad()
    def write(self) -> None:
        """Bound what the last step changed, then bring the graph's buffers up to date, activations first."""
        for name, latent in self.parameters.items():
            before = self._before[name]
            latent.copy_(latent.clamp(before / LARGEST_STEP, before * LARGEST_STEP).clamp(*self._limits(name)))
            before.copy_(latent)
        for is_weight in (False, True):
            for learned in self._unique.values():
                if (learned.step.axis is not None) == is_weight:
                    scale = (learned.latent * learned.unit).detach()
                    fit = self._fit_for_weights if is_weight else _fit_for_activations
                    self._graph.weight(learned.name).copy_(fit(learned, scale))

    def state(self) -> dict[str, torch.Tensor]:
        """The parameters, under names that no weight has."""
        return {name + _SAVED: latent.detach() for name, latent in self.parameters.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, latent in self.parameters.items():
            latent.copy_(state[name + _SAVED])
            self._before[name].copy_(latent)

    @torch.no_grad()
    def at_limit(self) -> list[str]:
        """The names of scales that have shrunk or grown to their limit."""
        limits = {name: self._limits(name) for name in self.parameters}
        return [n for n, p in self.parameters.items() if bool(((p <= limits[n][0]) | (p >= limits[n][1])).any())]

    def change(self) -> float:
        """The largest factor, over 1, by which a scale has grown or shrunk."""
        ratios = [(self._graph.weight(name).double() / first).log() for name, first in self._first.items()]
        return float(torch.cat([ratio.abs().flatten() for ratio in ratios]).max().exp())

    def _limits(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and the largest value of a parameter."""
        first = self._first[name]
        low, high = (first / LARGEST_CHANGE).clamp(min=SMALLEST_SCALE), first * LARGEST_CHANGE
        return (low / first, high / first) if self._relative else (low, high)

    def _fit_for_weights(self, learned: Learned, scale: torch.Tensor) -> torch.Tensor:
        largest = scale.double() * learned.step.high
        bias, read = bias_and_input(self._graph, self._roles, learned.quantizer)
        input_scale = 1.0 if read is None else float(self._graph.weight(arguments(read).scale))
        return symmetric(-largest, largest, learned.step.high, bias, input_scale)[0]


def _fit_for_activations(learned: Learned, scale: torch.Tensor) -> torch.Tensor:
    return torch.tensor(short(float(scale), learned.step.high - learned.step.low))


def check_calibrated(quantizers: Iterable[fx.Node], graph: Graph, where: str) -> None:
    """Raises UsageError for a quantizer whose scale was never set: whatever runs through it is NaN."""
    for quantizer in quantizers:
        name = str(arguments(quantizer).scale.target)
        scale = graph.weight(name)
        if not bool(torch.isfinite(scale).all() and (scale > 0).all()):
            what = f"the scale '{name}' was never set"
            raise UsageError(where, what, "put 'calibrate' between 'insert-fake-quant' and 'finetune'")
