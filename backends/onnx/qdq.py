"""From integer ops to float ops between QuantizeLinear and DequantizeLinear: the form in which ONNX holds integers.

    %xq = QuantizeLinear(%x, scale, zero_point);  %xc = DequantizeLinear(%xq, 1, zero_point)
    %y = Conv(%xc, DequantizeLinear(w, multiplier), DequantizeLinear(b, multiplier))
    %yq = QuantizeLinear(%y, 1, zero_point);      %yc = DequantizeLinear(%yq, 1, zero_point)

Every activation is counted in its own steps: its scale is 1 and its float value an integer, which float32 holds; a
weight's scale is its product's multiplier. That is exact in two ways:

- A runtime replaces a product between such pairs by an integer kernel. onnxruntime multiplies the sums of one by
  f32(f32(x_scale * w_scale) / y_scale), which is the multiplier itself, and rounds as `planish.ir.integers` does.
- Everything else is float arithmetic on integers below 2**24, then a multiplication and a rounding, one each as in the
  contract. It needs no kernel. Sums and products of two activations are written so, for onnxruntime's kernels of these
  add the zero point before they round, and on ARM round ties away from zero.

Ops that only move numbers stand between a DequantizeLinear and a QuantizeLinear too. Tables are read by integers, and
padding is done on them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...ir import rewrite
from ...ir.graph import Graph
from ...ir.ops import arguments, op_name
from ...ir.shapes import AFFINE, input_nodes
from . import products
from .operators import OPS, is_integer_op
from .writer import Writer

_aten = torch.ops.aten
_PADS = ("pad", "constant_pad_nd")


def to_qdq(graph: Graph) -> Graph:
    """A graph of float ops between quantize_linear and dequantize_linear that computes what an integer graph computes.

    Raises BuildError, naming the node, for sums that float32 cannot hold where no integer kernel does them.
    """
    twin = graph.copy()
    _Rewriting(twin).run()
    rewrite.finish(twin)
    return twin


@dataclass
class _Rewriting:
    """One walk in graph order; `writer` knows the float values that stand for integers."""

    graph: Graph
    writer: Writer = field(init=False)

    def __post_init__(self) -> None:
        self.writer = Writer(self.graph, _zero_points(self.graph))

    def run(self) -> None:
        nodes = list(self.graph.nodes)
        self.writer.at = next(node for node in nodes if node.op in ("call_function", "output"))
        for node in _integer_inputs(self.graph):
            self.writer.store_integers(node, node)
        for node in nodes:
            self.writer.at = node
            if is_integer_op(node):
                self._integer_op(node)
            elif node.op in ("call_function", "output"):
                self._other(node)

    def _integer_op(self, node: fx.Node) -> None:
        call = arguments(node)
        if rule := _STORES.get(op_name(node)):
            rule(self.writer, node, call)
        elif rule := _FLOATS.get(op_name(node)):
            rewrite.replace(self.graph, node, rule(self.writer, node, call))

    def _other(self, node: fx.Node) -> None:
        """An op that moves integers moves their float values instead; what else reads one (a size) reads that too."""
        reads = [read for read in node.all_input_nodes if self.writer.knows(read)]
        if not reads:
            return
        if node.op == "output":
            for read in reads:
                node.replace_input_with(read, self.writer.stored(read))
        elif op_name(node) in _PADS:  # which runtimes do on integers only where they are told so
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.writer.stored_or_itself)
            self.writer.store_integers(node, self.writer.call(node.target, *args, **kwargs))
        elif isinstance(node.meta["val"], (torch.Tensor, tuple, list)):
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.writer.value_or_itself)
            self.writer.moved(node, self.writer.call(node.target, *args, **kwargs))
        else:
            for read in reads:
                node.replace_input_with(read, self.writer.value(read))


def _zero_points(graph: Graph) -> dict[fx.Node, int]:
    """The zero point of every integer value: as its op or its readers say, and the same on both sides of a move."""
    known: dict[fx.Node, int] = {node: node.meta[AFFINE][1] for node in _integer_inputs(graph)}
    for node in filter(is_integer_op, graph.nodes):
        call = arguments(node)
        for operand, zero_point in _OPERANDS.items():
            if isinstance(read := getattr(call, operand, None), fx.Node) and hasattr(call, zero_point):
                known[read] = getattr(call, zero_point)
        if op_name(node) in ("quantize", "requantize", "add_int8"):
            known[node] = call.zero_point
    moves = [n for n in graph.nodes if n.op == "call_function" and (not is_integer_op(n) or op_name(n) in _MOVES)]
    before = -1
    while before != (before := len(known)):
        for node in moves:
            together = [node, *node.all_input_nodes]
            if zero_points := [known[n] for n in together if n in known]:
                known |= dict.fromkeys(together, zero_points[0])
    return known


def _integer_inputs(graph: Graph) -> list[fx.Node]:
    return [node for node in input_nodes(graph.module.graph) if AFFINE in node.meta]


# An operand of an integer op, and the argument that holds its zero point.
_OPERANDS = {"input": "zero_point", "left": "zero_left", "right": "zero_right", "q": "zero_point"}


def _quantize(writer: Writer, node: fx.Node, call: Any) -> None:
    writer.store(node, call.x, call.low, call.high, scale=call.scale)


def _requantize(writer: Writer, node: fx.Node, call: Any) -> None:
    multiplier = writer.graph.weight(call.multiplier)
    acc, moves = products.seen_through_moves(call.acc) if multiplier.ndim == 0 else (call.acc, [])
    value = products.multiplied(writer, acc, multiplier, call.axis, quantized=True)
    writer.store(node, value, call.low, call.high)
    shaped = products.as_before(writer, writer.value(node), acc)
    if shaped is not writer.value(node) or moves:
        writer.moved(node, products.move(writer, shaped, moves))


def _add(writer: Writer, node: fx.Node, call: Any) -> None:
    """Both operands on the grid of 2**-shift, where their sum is exact; then one rounding."""
    unit = 2.0**-call.shift
    left, right = writer.scaled(call.left, call.factor_left * unit), writer.scaled(call.right, call.factor_right * unit)
    writer.store(node, writer.call(OPS.sum_of_two.default, left, right), call.low, call.high)


def _look_up(writer: Writer, node: fx.Node, call: Any) -> None:
    """A table that starts with what 0 reads: negative integers count from its end."""
    table = writer.graph.weight(call.table).roll(torch.iinfo(call.q.meta["val"].dtype).min)
    integers = writer.call(OPS.look_up.default, writer.constant("table", table), writer.stored(call.q))
    writer.store_integers(node, integers)


def _nearest(writer: Writer, node: fx.Node, call: Any) -> None:
    rows = writer.call(_aten.index_select.default, writer.value(call.q), 2, call.rows)
    writer.moved(node, writer.call(_aten.index_select.default, rows, 3, call.columns))


_STORES: dict[str, Callable[[Writer, fx.Node, Any], None]] = {
    "quantize": _quantize,
    "requantize": _requantize,
    "add_int8": _add,
    "lookup_int8": _look_up,
    "upsample_nearest2d_int8": _nearest,
}
_MOVES = ("upsample_nearest2d_int8",)


def _dequantize(writer: Writer, node: fx.Node, call: Any) -> fx.Node:
    return writer.scaled(call.q, call.scale)


def _dequantize_int32(writer: Writer, node: fx.Node, call: Any) -> fx.Node:
    value = products.multiplied(writer, call.acc, writer.graph.weight(call.scale), call.axis, quantized=False)
    return products.as_before(writer, value, call.acc)


_FLOATS: dict[str, Callable[[Writer, fx.Node, Any], fx.Node]] = {
    "dequantize": _dequantize,
    "dequantize_int32": _dequantize_int32,
}
