"""One run of the data through the float model, which serves all observers."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.ops import describe, is_op, tensors
from ..base import Context
from ..forward import bind_inputs
from .observers import Statistics
from .placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER

Inputs = tuple[torch.Tensor, ...]

_SAMPLES = 4  # of the first batch, for the noise report: enough to rank layers, little beside the run over the data


@dataclass
class Collected:
    """How many batches and samples went through, and the inputs that stand for them in the noise report."""

    batches: int = 0
    samples: int = 0
    sample: tuple[torch.Tensor, ...] = ()


def collect(
    graph: Graph, ctx: Context, where: str, seen: dict[str, Statistics], samples: int | None = None
) -> Collected:
    """Show all values of each quantizer to the statistics that go by the name of its scale, quantizers being bypassed.

    With `samples`, the run ends after so many; a batch counts one where the model has no batch dim.

    Raises UsageError for no data, a loader that is empty or too short, a wrong shape, and NaN or infinity, naming the
    layer.
    """
    run = Collected()
    for inputs in ctx.progress(_first(graph, ctx.batches(graph, where), samples), where):
        run.batches += 1
        run.samples += _count(graph, inputs)
        with torch.no_grad():
            _Watch(graph, f"{where}, batch {run.batches}", seen).run(initial_env=bind_inputs(graph, inputs))
        for statistics in seen.values():
            statistics.end_batch()
        if run.batches == 1:
            run.sample = tuple(value.clone() for value in _cut(graph, inputs, _SAMPLES))
    if samples is not None and run.samples < samples:
        what = f"the loader has {run.samples} samples, 'samples' asks for {samples}"
        raise UsageError(where, what, "give more data or lower 'samples'")
    return run


def refuse_broken_weights(graph: Graph, where: str) -> None:
    """Raises UsageError naming a weight that holds NaN or infinity. Scales are not looked at."""
    for node in graph.module.graph.find_nodes(op="get_attr"):
        value = graph.weight(node)
        is_scale = any(is_op(u, ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER) and u.args[0] is not node for u in node.users)
        if not is_scale and _is_float(value) and not bool(torch.isfinite(value).all()):
            raise UsageError(where, f"weight '{node.target}' holds NaN or infinity", "load sound weights")


def scale_name(quantizer: fx.Node) -> str:
    scale = quantizer.args[1]
    assert isinstance(scale, fx.Node)
    return str(scale.target)


class _Watch(fx.Interpreter):
    """Runs the float model, showing each quantizer's input to its statistics."""

    def __init__(self, graph: Graph, where: str, seen: dict[str, Statistics]):
        super().__init__(graph.module)
        self.extra_traceback = False  # an error is told in our words alone
        self.where = where
        self.seen = seen

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            self._check_outputs(n)
        if not is_op(n, ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER):
            return super().run_node(n)
        source = n.args[0]
        assert isinstance(source, fx.Node)
        value = self.env[source]
        if is_op(n, ACTIVATION_QUANTIZER):
            self._check(source, *self.seen[scale_name(n)].observe(value))
        return value

    def _check_outputs(self, output: fx.Node) -> None:
        for read in output.all_input_nodes:
            for tensor in filter(_is_float, tensors(self.env[read])):
                self._check(read, float(tensor.abs().max()))

    def _check(self, source: fx.Node, *ends: float) -> None:
        if not all(map(math.isfinite, ends)):
            what = f"the output of {describe(source)}, '{source.name}', holds NaN or infinity"
            raise UsageError(self.where, what, "check the data's range and the weights")


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.numel() > 0


def _first(graph: Graph, batches: Iterable[Inputs], samples: int | None) -> Iterator[Inputs]:
    """Batches until there are so many samples, the last one cut to fit."""
    left = samples
    for inputs in batches:
        if left is not None:
            inputs = _cut(graph, inputs, left)
            left -= _count(graph, inputs)
        yield inputs
        if left == 0:
            return


def _has_batch(graph: Graph) -> bool:
    """Whether every input counts samples in its first dim."""
    return all(spec.shape and spec.shape[0] == "b" for spec in graph.inputs)


def _count(graph: Graph, inputs: Inputs) -> int:
    return len(inputs[0]) if inputs and _has_batch(graph) else 1


def _cut(graph: Graph, inputs: Inputs, samples: int) -> Inputs:
    return tuple(value[:samples] for value in inputs) if _has_batch(graph) else inputs
