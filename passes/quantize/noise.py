"""Signal to noise: a fake-quantized model against its float self, run side by side, value by value."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from ...ir.graph import Graph
from ...ir.ops import is_op, tensors
from ..forward import bind_inputs
from .placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER

_BLOCK = 1 << 15
_LEAST = -200.0  # decibels of noise without any signal, kept finite for reports


@dataclass(frozen=True)
class Noise:
    """At one quantizer: all the noise that arose up to it, and the share of its values that lie beyond its levels.

    decibels   10 log10(sum(float^2) / sum((float - quantized)^2)); None where both are equal
    saturated  of the values that the quantizer rounds, 0 to 1
    """

    decibels: float | None
    saturated: float


def signal_to_noise(graph: Graph, inputs: Iterable[torch.Tensor]) -> tuple[dict[str, Noise], float | None]:
    """The noise at each activation quantizer (by node name), and decibels of the model's outputs together.

    Only values still to be read are held, in both forms.
    """
    interpreter = _SideBySide(graph.module)
    twins = [_Twin(value, value.clone()) for value in inputs]
    with torch.no_grad():
        interpreter.run(initial_env=bind_inputs(graph, twins))
    return interpreter.found, interpreter.output_decibels


@dataclass(frozen=True, eq=False)
class _Twin:
    """One value of the graph in float and fake-quantized."""

    exact: Any
    quantized: Any


class _SideBySide(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.found: dict[str, Noise] = {}
        self.output_decibels: float | None = None

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            self.output_decibels = _decibels([self.env[read] for read in n.all_input_nodes])
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        quantized = n.target(*_side(args, "quantized"), **_side(kwargs, "quantized"))  # type: ignore[operator]
        if is_op(n, ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER):
            twin = _Twin(_side(args[0], "exact"), quantized)
        else:
            twin = _Twin(n.target(*_side(args, "exact"), **_side(kwargs, "exact")), quantized)  # type: ignore[operator]
        if is_op(n, ACTIVATION_QUANTIZER):
            grid = (float(args[1]), int(args[2]), args[3], args[4])
            self.found[n.name] = Noise(_decibels([twin]), _saturated(_side(args[0], "quantized"), *grid))
        return twin


def _side(value: Any, which: str) -> Any:
    return map_aggregate(value, lambda v: getattr(v, which) if isinstance(v, _Twin) else v)


def _saturated(values: torch.Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> float:
    """The share of values that are more than half a step beyond the levels."""
    low, high = (quant_min - zero_point - 0.5) * scale, (quant_max - zero_point + 0.5) * scale
    beyond = torch.count_nonzero(values < low) + torch.count_nonzero(values > high)
    return int(beyond) / max(values.numel(), 1)


def _decibels(twins: list[Any]) -> float | None:
    signal = noise = 0.0
    for twin in (t for t in twins if isinstance(t, _Twin)):
        for exact, quantized in zip(tensors(twin.exact), tensors(twin.quantized), strict=True):
            signal += _energy(exact)
            noise += _energy(exact - quantized)
    if noise == 0.0:
        return None
    return max(round(10 * math.log10(signal / noise), 2), _LEAST) if signal else _LEAST


def _energy(values: torch.Tensor) -> float:
    """The sum of squares, added up in float64 block by block: temporaries stay in cache."""
    return sum(float(block.double().square().sum()) for block in values.reshape(-1).split(_BLOCK))
