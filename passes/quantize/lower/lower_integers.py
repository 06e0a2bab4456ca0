"""lower-integers: from a calibrated float graph to one that computes in integers."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from ....ir import rewrite
from ....ir.cost import INTEGER_PRODUCTS, macs
from ....ir.errors import UsageError
from ....ir.graph import Graph
from ....ir.ops import arguments, is_getitem, is_op, op_name
from ....ir.shapes import AFFINE, input_nodes
from ...base import Context, Pass, Result, Skip
from ..placement import (
    ACTIVATION_QUANTIZER,
    EDGES,
    INTEGER_INPUTS,
    INTEGER_OUTPUTS,
    WEIGHT_QUANTIZER,
    quantizer_of,
)
from ..rules import WEIGHT_AXIS, Role, Roles, data_inputs
from . import arithmetic, batch_norm, functions, moves, products
from .emitter import Emitter
from .quantized import Grid, Quantized

_SHAPE_QUESTIONS = ("sym_size", "size")


@dataclass(frozen=True)
class LowerIntegers(Pass):
    """Turn every quantized region into integer ops (docs/quantization.md lists them), whose results are exact.

    before:  %xq = fake_quantize(%x, ...);  %y = conv2d(%xq, fake_quantize(w), b);  %z = relu(%y)
             %zq = fake_quantize(%z, ...)
    after:   %xq = quantize(%x, scale=0.02, ...);  %a = conv_int32(%xq, w_int8, b_int32, ...)
             %zq = requantize(%a, multiplier, ...)
    skips:   a product whose sums could leave int32; an op without an integer form, or without one for its arguments;
             quantizers of more than 8 bits; a graph without quantizers; an input or output that 'edges' names and no
             quantizer stands behind. What is skipped stays in float, between explicit conversions, a product with the
             weight that it had before it was quantized

    The integer graph differs from the fake-quantized one in roundings only: biases are integers, sums are exact, and
    a sum of two values is rounded once. Whatever runs it gives the same integers (planish.ir.integers).

    Source: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
    inference, CVPR 2018, arXiv:1712.05877.
    """

    name: ClassVar[str] = "lower-integers"
    requires: ClassVar[frozenset[str]] = frozenset({"calibrated"})
    provides: ClassVar[frozenset[str]] = frozenset({"integers"})
    drops: ClassVar[frozenset[str]] = frozenset({"fake-quant", "calibrated"})

    edges: str = "float"
    """Which of the model's inputs and outputs are integers: float (none), inputs, outputs, or integer (both).
    `graph.inputs` and `graph.outputs` state what they stand for: scale * (q - zero_point). Outputs need
    insert-fake-quant{edges=integer}."""

    def __post_init__(self) -> None:
        if self.edges not in EDGES:
            expected = f"expected {', '.join(EDGES[:-1])} or {EDGES[-1]}"
            raise UsageError(self.name, f"'edges' is '{self.edges}'", expected)

    def keeps_types(self) -> bool:
        return self.edges == "float"

    def run(self, graph: Graph, ctx: Context) -> Result:
        graph.eval()
        lowering = _Lowering(graph, ctx, self.edges)
        lowering.run()
        rewrite.finish(graph)
        skipped = tuple(lowering.skipped.values())
        if not (lowering.quantizers or skipped):
            skipped = (Skip("the graph", "no activation is quantized; nothing computes in integers"),)
        return Result(lowering.changed, skipped, _details(graph))


@dataclass
class _Lowering:
    """One walk in graph order.

    integers   float node -> the integers that stand for its value
    moved      float node that moves values of a grid and has no integer form -> that grid
    sums       product -> its int32 sums, which may be read as integers and as floats
    floats     calls that read floats, and what those read is not yet joined to the integers
    """

    graph: Graph
    ctx: Context
    edges: str = "float"
    integers: dict[fx.Node, Quantized] = field(default_factory=dict)
    moved: dict[fx.Node, Grid] = field(default_factory=dict)
    sums: dict[fx.Node, fx.Node] = field(default_factory=dict)
    floats: list[fx.Node] = field(default_factory=list)
    skipped: dict[fx.Node, Skip] = field(default_factory=dict)
    changed: int = 0

    def __post_init__(self) -> None:
        self.roles = Roles(self.graph)
        self.quantizers = self.graph.calls(ACTIVATION_QUANTIZER)
        self.emitter = Emitter(self.graph, next(iter(self.graph.nodes)))

    def run(self) -> None:
        if self.edges in INTEGER_INPUTS:
            self._take_integers()
        for node in [n for n in self.graph.nodes if n.op == "call_function"]:
            self.emitter.at = node
            if is_op(node, ACTIVATION_QUANTIZER):
                self._quantizer(node)
            elif self.roles[node] in (Role.PASS, Role.JOIN):
                self._move(node)
        self._join_floats()

    def _take_integers(self) -> None:
        """Inputs that a quantizer of 8 bits stands behind become its integers."""
        for node in input_nodes(self.graph.module.graph):
            quantizer = quantizer_of(node)
            if quantizer is None and node.meta["val"].is_floating_point():
                self._skip(node, "no quantizer stands behind this input")
            if quantizer is not None and (grid := Grid.of(self.graph, quantizer)).fits_8_bits and self.ctx.fuel.take():
                self.changed += 1
                rewrite.set_input_type(self.graph, node, grid.dtype)
                self._mark(self.integers.setdefault(node, Quantized(node, grid)))

    def _give_integers(self, output: fx.Node) -> set[fx.Node]:
        """Outputs that are integers on a grid are handed out as they are. Returns the calls that make them."""
        given: set[fx.Node] = set()
        for read in output.all_input_nodes:
            value = self._quantized(read)
            if value is not None:
                self._mark(value)
                output.replace_input_with(read, value.node)
                given.add(value.node)
            elif read.meta["val"].is_floating_point():
                self._skip(read, "no quantizer stands behind this output; set 'edges' of insert-fake-quant")
        return given

    @staticmethod
    def _mark(value: Quantized) -> None:
        value.node.meta[AFFINE] = value.grid.scale, value.grid.zero_point

    def _quantizer(self, quantizer: fx.Node) -> None:
        """The integers of a quantized value: computed from integers where all its inputs are, else converted."""
        grid, value = Grid.of(self.graph, quantizer), arguments(quantizer).self
        if not grid.fits_8_bits:
            self._skip(value, f"its quantizer has levels {grid.low} to {grid.high}, integer ops have 8 bits")
            return
        if not self.ctx.fuel.take():
            return
        self.changed += 1
        head, chain = functions.behind(value, self.roles)
        found = self._computed(value, head, chain, grid)
        if isinstance(found, str):
            if self._reads_integers(head):
                self._skip(head, found)
            found = self._from_float(value, grid)
        self.integers[quantizer] = Quantized(found, grid)

    def _computed(self, value: fx.Node, head: fx.Node, chain: functions.Chain, grid: Grid) -> fx.Node | str:
        """The integers of a value (which is `head` behind a chain of functions), or why they cannot be computed."""
        if (source := self._quantized(head)) is not None:
            return self._looked_up(value, chain, source, grid)
        if why := self.roles.why_float(head):
            return why
        ends = functions.clip_ends(chain)
        if ends is None:
            return f"its value is read by '{op_name(chain[0])}' and not quantized"
        clipped = grid.clipped(*ends)
        if is_op(head, *WEIGHT_AXIS, "batch_norm"):
            return self._requantized(value, head, clipped)
        inputs = self._all_quantized(head)
        if inputs is None:
            return "its inputs are not all quantized"
        return arithmetic.emit(self.emitter, head, inputs, clipped)

    def _requantized(self, value: fx.Node, head: fx.Node, grid: Grid) -> fx.Node | str:
        """A product, or a batch norm as one, on the grid of a value behind it."""
        product = self._product(head)
        if isinstance(product, str):
            return product
        multiplier = product.multiplier(grid)
        if not bool(torch.isfinite(multiplier).all()):
            return f"its scale ({grid.scale:.2g}) is too small beside its input's ({product.source.grid.scale:.2g})"
        return self.emitter.requantize(value, self._sums(product), multiplier, product.axis, grid)

    def _looked_up(self, value: fx.Node, chain: functions.Chain, source: Quantized, grid: Grid) -> fx.Node:
        if not chain and source.grid.means_the_same(grid):
            return source.node
        table = self.emitter.weight(f"{value.name}.table", functions.table(chain, source.grid, grid))
        return self.emitter.integers("lookup_int8", value, source.node, table)

    def _move(self, node: fx.Node) -> None:
        if is_getitem(node) and (grid := self.moved.get(data_inputs(node)[0])) is not None:
            self.moved[node] = grid
            return
        inputs = self._all_quantized(node)
        if inputs is None:
            return
        if not all(value.grid.means_the_same(inputs[0].grid) for value in inputs):
            self._skip(node, "its inputs have different scales")
            return
        moved = moves.emit(self.emitter, node, inputs)
        if isinstance(moved, str):
            self._skip(node, moved)
            self.moved[node] = inputs[0].grid
        else:
            self.integers[node] = moved

    def _quantized(self, node: fx.Node) -> Quantized | None:
        """The integers that stand for a value. Floats that are on a grid already are converted without an error."""
        if (grid := self.moved.pop(node, None)) is not None:
            with self.emitter.before(node.next):
                self.integers[node] = Quantized(self._from_float(node, grid), grid)
        return self.integers.get(node)

    def _from_float(self, node: fx.Node, grid: Grid) -> fx.Node:
        self.floats.append(self.emitter.store("quantize", node, grid, node, grid.scale))
        return self.floats[-1]

    def _join_floats(self) -> None:
        """What is still needed in float, back from the outputs: products are converted from int32 sums, other ops
        read converted integers."""
        output = self.graph.module.graph.output_node()
        self.floats.append(output)
        seen = self._give_integers(output) if self.edges in INTEGER_OUTPUTS else set[fx.Node]()
        while self.floats:
            node = self.floats.pop()
            if node in seen:
                continue
            seen.add(node)
            if self._float_product(node):
                continue
            for read in node.all_input_nodes:
                value = self.integers.get(read)
                if value is None or read in value.node.args[:1]:
                    self.floats.append(read)
                elif is_op(node, *_SHAPE_QUESTIONS):
                    node.replace_input_with(read, value.node)
                else:
                    node.replace_input_with(read, self.emitter.dequantized(read, value))

    def _float_product(self, node: fx.Node) -> bool:
        """Compute a product whose result is read as float in integers, and convert its sums. False where it cannot."""
        if not is_op(node, *WEIGHT_AXIS):
            return False
        product = self._product(node)
        if isinstance(product, str):
            weight = arguments(node).weight
            if is_op(weight, WEIGHT_QUANTIZER):
                self._skip(node, product)
                if self._quantized(*data_inputs(node)) is not None:  # else lower-weights may still want it
                    rewrite.set_argument(self.graph, node, "weight", arguments(weight).self)
            return False
        if not self.ctx.fuel.take():
            return False
        self.changed += 1
        with self.emitter.before(node):
            floats = self.emitter.float_sums(node, self._sums(product), product.scale, product.axis)
        rewrite.replace(self.graph, node, floats)
        return True

    def _product(self, node: fx.Node) -> products.Product | str:
        """The integer form of a product, of one with a batch norm behind it, or of a batch norm by itself."""
        (read,) = data_inputs(node)
        if not is_op(node, "batch_norm"):
            return products.find(self.graph, node, self._quantized(read))
        if self.roles.fused_head(node) is None:
            return batch_norm.find(self.graph, node, self._quantized(read))
        behind = batch_norm.affine(self.graph, node)
        if isinstance(behind, str):
            return behind
        return products.find(self.graph, read, self._quantized(*data_inputs(read)), behind)

    def _sums(self, product: products.Product) -> fx.Node:
        """Made once, where the float product stands, for all that read them."""
        if product.node not in self.sums:
            with self.emitter.before(product.node):
                self.sums[product.node] = products.emit(self.emitter, product)
        return self.sums[product.node]

    def _reads_integers(self, node: fx.Node) -> bool:
        """True for a call that reads integers, or sums of them."""
        reads = data_inputs(node)
        reads = reads + [source for read in reads if is_op(read, *WEIGHT_AXIS) for source in data_inputs(read)]
        return any(read in self.integers for read in reads)

    def _skip(self, node: fx.Node, why: str) -> None:
        """Each node once, for its first reason."""
        self.skipped.setdefault(node, Skip.at(node, f"{why}; it stays in float"))

    def _all_quantized(self, node: fx.Node) -> list[Quantized] | None:
        """What each tensor that a call reads is in integers; None where one is not."""
        found = [value for read in data_inputs(node) if (value := self._quantized(read)) is not None]
        return found if found and len(found) == len(data_inputs(node)) else None


def _details(graph: Graph) -> dict:
    """How much computes in integers, and how often values change between float and integers."""
    count = {node: macs(node) for node in graph.nodes if node.op == "call_function"}
    integer = sum(count[node] for node in graph.calls(*INTEGER_PRODUCTS))
    return {
        "integer_macs": integer / total if (total := sum(count.values())) else 0.0,
        "integer_products": len(graph.calls(*INTEGER_PRODUCTS)),
        "float_products": sum(1 for node, n in count.items() if n and not is_op(node, *INTEGER_PRODUCTS)),
        "from_float": len(graph.calls("quantize")),
        "to_float": len(graph.calls("dequantize", "dequantize_int32")),
    }
