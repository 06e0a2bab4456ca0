"""What each precision would cost a layer: loss, bytes and time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from ....ir.errors import UsageError
from ....ir.graph import Graph
from ....ir.ops import arguments, is_op, only_user
from ...base import Skip
from ...measure import Measure
from ..placement import ACTIVATION_QUANTIZER
from ..rules import data_inputs, only_moves
from .alone import layer_alone
from .reference import Layer, float_form, quantized_layers, why_not_own
from .returned import at_width

PRECISIONS = ("int8", "int4", "float")
_WIDTHS = {"int8": 8, "int4": 4, "float": None}
_FORMS = {"int8": "integers", "int4": "weights", "float": "float"}  # as `layer_alone` calls them

Latency = Callable[[Graph], float]


@dataclass(frozen=True)
class Option:
    """A precision of a layer. width: of its weight, None for float. milliseconds: None where nothing is timed."""

    precision: str
    width: int | None
    loss: float
    bytes: int
    milliseconds: float | None


@dataclass(frozen=True)
class Candidate:
    """A layer, what it may become, and what it takes in float. slower: precisions that are not faster than float."""

    layer: Layer
    width: int
    options: tuple[Option, ...]
    float_bytes: int
    float_milliseconds: float | None
    slower: tuple[tuple[str, float], ...]


def candidates(
    graph: Graph,
    whole: Graph,
    precisions: Sequence[str],
    measure: Measure,
    latency: Latency | None,
    progress: Callable[[Iterable, str], Iterable],
    where: str,
) -> tuple[list[Candidate], list[Skip]]:
    """All layers that have a choice, and why others have none. The data run once per layer and precision.

    whole    the graph's float form; a loss is how much worse than that the measure gets, never less than 0
    latency  times one layer as a graph of its own, in milliseconds
    """
    baseline, sign = measure.of(whole), -1.0 if measure.higher_is_better else 1.0
    found, skipped = [], []
    for layer in progress(quantized_layers(graph, whole), where):
        if why := _why_fixed(graph, layer):
            skipped.append(Skip.at(layer.product, f"{why}; it stays as it is"))
            continue
        allowed = [p for p in PRECISIONS if p in precisions and (p != "int4" or _can_pack(layer))]
        times = {p: _timed(graph, layer, p, latency, where) for p in {*allowed, "float"}}
        slower = [p for p in allowed if p != "float" and latency and not _faster(times[p], times["float"])]
        options = []
        for precision in [p for p in allowed if p not in slower] or ["float"]:
            loss = max(0.0, sign * (measure.of(_with_one(graph, layer, precision)) - baseline))
            stored = _bytes(graph, layer, precision)
            options.append(Option(precision, _WIDTHS[precision], loss, stored, times[precision]))
        assert layer.quantizer is not None
        width = arguments(layer.quantizer).quant_max.bit_length() + 1
        timed = tuple((p, t) for p in slower if (t := times[p]) is not None)
        found.append(Candidate(layer, width, tuple(options), _bytes(graph, layer, "float"), times["float"], timed))
    return found, skipped


def _why_fixed(graph: Graph, layer: Layer) -> str | None:
    if layer.quantizer is None:
        return "its scales are not one per channel"
    if not any(is_op(graph.node(name), ACTIVATION_QUANTIZER) for name in layer.quantizers):
        return "its input is not quantized"
    return why_not_own(graph, layer.product)


def _can_pack(layer: Layer) -> bool:
    """True for a linear layer that can read its input before it is quantized, whoever else reads it."""
    value = arguments(layer.product).input
    while only_moves(value) and not is_op(value, ACTIVATION_QUANTIZER) and only_user(value) is not None:
        value = data_inputs(value)[0]
    direct = value is arguments(layer.product).input
    return is_op(layer.product, "linear") and is_op(value, ACTIVATION_QUANTIZER) and (direct or bool(only_user(value)))


def _with_one(graph: Graph, layer: Layer, precision: str) -> Graph:
    """The float model with this layer alone in a precision."""
    width = _WIDTHS[precision]
    if width is None:
        return float_form(graph)
    assert layer.quantizer is not None
    kept = layer.quantizers if precision == "int8" else (layer.quantizer.name,)
    return at_width(float_form(graph, frozenset(kept)), layer, width)


def _bytes(graph: Graph, layer: Layer, precision: str) -> int:
    """Of weight, bias and scales, as a lowered graph stores them (lower/products.py, lower_weights.py)."""
    weight, bias = graph.weight(layer.weight), arguments(layer.product).bias
    outputs, in_float = _outputs(layer.product), 0 if bias is None else 4 * graph.weight(bias).numel()
    if precision == "int8":
        return weight.numel() + 8 * outputs  # an int32 bias and a float32 multiplier each
    if precision == "int4":
        return len(weight) * ((weight.shape[1] + 1) // 2) + 4 * outputs + in_float
    return weight.numel() * weight.element_size() + in_float


def _outputs(product: fx.Node) -> int:
    value = product.meta["val"]
    axis = -1 if is_op(product, "linear") else value.ndim - arguments(product).weight.meta["val"].ndim + 1
    return int(value.shape[axis])


def _timed(graph: Graph, layer: Layer, precision: str, latency: Latency | None, where: str) -> float | None:
    if latency is None:
        return None
    alone = layer_alone(graph, layer, _FORMS[precision])
    if (width := _WIDTHS[precision]) is not None:
        at_width(alone, layer, width)
    taken = float(latency(alone))
    if not 0 < taken < float("inf"):
        raise UsageError(where, f"'{layer.name}' takes {taken:g} ms in {precision}", "expected a time above 0")
    return taken


def _faster(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one < other
