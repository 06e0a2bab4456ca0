"""quantize-dynamic: linear layers and LSTMs in integers, activations quantized by what they hold at run time."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ...ir import rewrite
from ...ir.cost import cost
from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.integers.dynamic import LINEAR_DYNAMIC, LSTM_DYNAMIC
from ...ir.ops import arguments, is_op, op_name
from ..base import Context, Pass, Result, Skip
from ..pipeline_text import did_you_mean
from ..selectors import match, prefixes
from .lower.emitter import Emitter
from .observers.weights import WEIGHT_OBSERVERS
from .placement import ACTIVATION_QUANTIZER
from .rules import data_inputs, only_moves
from .scales import symmetric

_HIGH = 127
_LONGEST = (2**31 - 1) // (255 * _HIGH)  # inputs of an output whose sum is sure to stay in int32


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Multiply in integers without calibration: weights int8 per output, each input by its own range as it comes.

    before:  %y = linear(%x, fc.weight, fc.bias)
    after:   %y = linear_dynamic(%x, fc.weight_int8, fc.weight_scales, fc.bias)
    before:  %y = lstm(%x, [%h, %c], [lstm.weight_ih_l0, ...], ...)
    after:   %y = lstm_dynamic(%x, [%h, %c], [lstm.weight_ih_l0_int8, ...], [scales], [biases], ...)
    skips:   what 'keep' lists or 'only' does not; an input that is quantized already (lower-integers takes it); an
             input or weight that is not float32; a weight that is computed or rounded; sums that could leave int32; an
             LSTM with projections or over a packed sequence; a graph without linear layers and LSTMs

    Inputs and results are float32. The input's scale and zero point come from its least and greatest value in the whole
    tensor, so that a sample's result depends on the batch that it is in. Of an LSTM the inputs of the whole sequence
    are one product, the state of each step another. `planish.ir.integers.dynamic` states the arithmetic. Weights become
    buffers: they have no gradient.

    Raises UsageError for a pattern without a match.
    """

    name: ClassVar[str] = "quantize-dynamic"
    provides: ClassVar[frozenset[str]] = frozenset({"integers"})

    keep: tuple[str, ...] = ()
    """What stays in float: names or patterns of weights, layers or blocks, or an op (`linear`, `lstm`)."""
    only: tuple[str, ...] = ()
    """If given, all else stays in float. Named as in `keep`."""
    weight_observer: str = "min-max"
    """min-max or mean-squared-error."""

    def __post_init__(self) -> None:
        if self.weight_observer not in WEIGHT_OBSERVERS:
            hint = did_you_mean(self.weight_observer, WEIGHT_OBSERVERS) or f"known: {', '.join(WEIGHT_OBSERVERS)}"
            raise UsageError(self.name, f"unknown weight-observer '{self.weight_observer}'", hint)

    def run(self, graph: Graph, ctx: Context) -> Result:
        graph.eval()
        before, skipped, changed = cost(graph).bytes, [], 0
        calls = graph.calls("linear", "lstm")
        kept = self._kept(calls)
        emitter = Emitter(graph, next(iter(graph.nodes)))
        for node in calls:
            if why := kept.get(node) or _WHY_NOT[op_name(node)](graph, node):
                skipped.append(Skip.at(node, f"{why}; it stays in float"))
            elif ctx.fuel.take():
                emitter.at = node
                rewrite.replace(graph, node, _FORMS[op_name(node)](self, emitter, node))
                changed += 1
        rewrite.finish(graph)
        if not calls:
            skipped = [Skip("the graph", "it has no linear layer and no LSTM")]
        details = {"weight_bytes": (before, cost(graph).bytes)}
        return Result(changed, tuple(skipped), details, withheld=frozenset() if changed else self.provides)

    def _kept(self, calls: list[fx.Node]) -> dict[fx.Node, str]:
        """The calls that stay in float because the user says so."""
        labels = {node: [op_name(node), *(label for w in _weights(node) for label in prefixes(w))] for node in calls}
        advice = "expected a weight or layer ('head.*') or an op ('linear', 'lstm')"
        listed = match(labels, self.keep, self.name, "keep", "linear layer or LSTM", advice)
        wanted = match(labels, self.only, self.name, "only", "linear layer or LSTM", advice)
        others = {node: "it is not in 'only'" for node in calls if self.only and node not in wanted}
        return others | {node: f"'keep' lists '{pattern}'" for node, pattern in listed.items()}

    def linear(self, emitter: Emitter, node: fx.Node) -> fx.Node:
        call = arguments(node)
        weight, scale = self._stored(emitter, call.weight)
        return _insert(emitter, node, LINEAR_DYNAMIC, call.input, weight, scale, call.bias)

    def lstm(self, emitter: Emitter, node: fx.Node) -> fx.Node:
        call = arguments(node)
        stored = [self._stored(emitter, weight) for weight in call.params if _is_matrix(weight)]
        biases = [param for param in call.params if not _is_matrix(param)]
        weights, scales = ([pair[which] for pair in stored] for which in (0, 1))
        args = call.input, list(call.hx), weights, scales, biases, call.bidirectional, call.batch_first
        return _insert(emitter, node, LSTM_DYNAMIC, *args)

    def _stored(self, emitter: Emitter, held: fx.Node) -> tuple[fx.Node, fx.Node]:
        """A weight as int8 and its scales."""
        weight = emitter.graph.weight(held).detach()
        size = WEIGHT_OBSERVERS[self.weight_observer](weight, _HIGH)
        scale, _ = symmetric(-size, size, _HIGH, None, 1.0)
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -_HIGH, _HIGH)
        steps = (rounded / scale.unsqueeze(1)).round().to(torch.int8)
        return emitter.weight(f"{held.target}_int8", steps), emitter.weight(f"{held.target}_scales", scale)


def _insert(emitter: Emitter, node: fx.Node, op: str, *args: Any) -> fx.Node:
    target = getattr(torch.ops.planish, op).default
    return rewrite.insert(emitter.graph, target, args, before=node, like=node, name=f"{node.name}_dynamic")


def _why_not_linear(graph: Graph, node: fx.Node) -> str | None:
    call = arguments(node)
    if call.bias is not None and call.bias.op != "get_attr":
        return "its bias is computed, not stored"
    return _why_not_input(call.input) or _why_not_weights([call.weight], [call.bias] if call.bias else [])


def _why_not_lstm(graph: Graph, node: fx.Node) -> str | None:
    if str(node.target).endswith(".data"):
        return "it reads a packed sequence"
    call = arguments(node)
    if len(call.params) != call.num_layers * (2 if call.bidirectional else 1) * (4 if call.has_biases else 2):
        return "it has projections"
    matrices = [param for param in call.params if _is_matrix(param)]
    return _why_not_input(call.input) or _why_not_weights(matrices, [p for p in call.params if not _is_matrix(p)])


def _why_not_input(value: fx.Node) -> str | None:
    if value.meta["val"].dtype != torch.float32:
        return "its input is not float32"
    while only_moves(value) and not is_op(value, ACTIVATION_QUANTIZER):
        value = data_inputs(value)[0]
    return "its input is quantized already" if is_op(value, ACTIVATION_QUANTIZER) else None


def _why_not_weights(matrices: list[fx.Node], biases: Iterable[fx.Node]) -> str | None:
    for weight in (*matrices, *biases):
        if weight.op != "get_attr":
            return "its weight is computed or rounded"
        if weight.meta["val"].dtype != torch.float32:
            return "its weight is not float32"
    longest = max(int(weight.meta["val"].shape[1]) for weight in matrices)
    return f"its sums of {longest} products can leave int32" if longest > _LONGEST else None


def _is_matrix(param: fx.Node) -> bool:
    return param.meta["val"].ndim == 2


def _weights(node: fx.Node) -> list[str]:
    """The names of the weights that a call reads."""
    return [str(read.target) for read in node.all_input_nodes if read.op == "get_attr"]


_WHY_NOT = {"linear": _why_not_linear, "lstm": _why_not_lstm}
_FORMS = {"linear": QuantizeDynamic.linear, "lstm": QuantizeDynamic.lstm}
