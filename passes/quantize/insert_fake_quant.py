"""insert-fake-quant: place quantizers on the weights and activations that integer kernels will read."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...ir import rewrite
from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.ops import is_op
from ...ir.shapes import shape
from ..base import Context, Pass, Result, Skip
from .placement import EDGES, INTEGER_OUTPUTS, WEIGHT_QUANTIZER, Placement, place, quantizer_of
from .quantizers import cast_weight, quantize_activations, quantize_groups, quantize_weight
from .rules import WEIGHT_AXIS, is_rounded, stored_weight
from .selection import Selection, at_end

# Signedness that the machine's int8 instructions want: x86 multiplies u8 by s8, ARM and CUDA s8 by s8.
_MACHINE_ACTIVATIONS = {("cpu", "x86_64"): "uint8"}
_ENDS = ("same", "int8", "float")
_ACTIVATIONS = ("int8", "uint8", "int16", "target", None)
_SMALL_FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class InsertFakeQuant(Pass):
    """Quantize and dequantize values in place, as integer kernels will, in a graph that stays float and trainable.

    before:  %y = conv2d(%x, conv.weight);  %z = relu(%y);  %u = conv2d(%z, ...)
    after:   %xq = fake_quantize(%x, x.activation_scale, ...);  %wq = fake_quantize(conv.weight, conv.weight_scale, ...)
             %y = conv2d(%xq, %wq);  %z = relu(%y);  %zq = fake_quantize(%z, relu.activation_scale, ...)
    skips:   a call named by 'keep', or a product that 'only' does not name; a first or last layer where those stay
             in float; a computed weight or bias; a constant or integer operand; padding with other than zero; a
             matrix product of a value that does not come from integers; an op between integer ops that has no
             integer form; a weight whose rows 'weight-group' does not divide

    Weights are quantized per output channel, symmetric; activations per tensor, affine. The quantizer of a conv stands
    behind its batch norm and clip (relu, relu6, ...); pooling by maximum, reshapes and the like pass a scale on;
    inputs of a concat share one. Inputs of the model are quantized, outputs are not. Batch norm is best folded
    before; where it is not, it counts as part of the conv. With `edges` outputs are quantized too, so that
    lower-integers can make them integers. Scales are infinite until `calibrate` sets them, so that
    running the graph too early yields NaN and cannot go unseen. Rounding is half to even, then the zero point is
    added, then the clip (as torch.fake_quantize_per_tensor_affine does), with a straight-through gradient.

    Source: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
    inference, CVPR 2018, arXiv:1712.05877; per channel weights: Krishnamoorthi, arXiv:1806.08342.
    """

    name: ClassVar[str] = "insert-fake-quant"
    provides: ClassVar[frozenset[str]] = frozenset({"fake-quant"})
    refuses: ClassVar[frozenset[str]] = frozenset({"integers"})
    drops: ClassVar[frozenset[str]] = frozenset({"calibrated"})

    keep: tuple[str, ...] = ()
    """What stays in float: names or patterns of weights, layers or blocks (`conv1`, `classifier.*`), ops (`linear`,
    `add`) or classes of modules (`Linear`, `SqueezeExcite`)."""
    only: tuple[str, ...] = ()
    """If given, all other products stay in float. Named as in `keep`."""
    first: str = "same"
    """Layers that no other one stands before. same: as the others; int8: weights of 8 bits at any rate; float."""
    last: str = "same"
    """Layers that no other one stands behind: same, int8 or float."""
    activations: str | None = "int8"
    """int8, uint8, int16, none (weights alone are quantized), or target: what the target's int8 instructions want."""
    weights: str = "integer"
    """integer, or with `activations=none` float16 or bfloat16: weights are rounded to that type, and back."""
    weight_bits: int = 8
    """2 to 8."""
    weight_group: int | None = None
    """With `activations=none`: one scale for so many neighbouring inputs of each output of linear layers."""
    activation_bits: int = 8
    """2 to 8, of int8 and uint8."""
    edges: str = "float"
    """float, or outputs or integer: the model's outputs are quantized as well. inputs changes nothing here."""

    def __post_init__(self) -> None:
        choices = (("activations", _ACTIVATIONS), ("first", _ENDS), ("last", _ENDS), ("edges", EDGES))
        for label, known in (*choices, ("weights", ("integer", *_SMALL_FLOATS))):
            if (word := getattr(self, label)) not in known:
                *others, last = map(_written, known)
                expected = f"expected {', '.join(others)} or {last}"
                raise UsageError(self.name, f"'{label}' is '{_written(word)}'", expected)
        for label, bits in (("weight-bits", self.weight_bits), ("activation-bits", self.activation_bits)):
            if not 2 <= bits <= 8:
                raise UsageError(self.name, f"'{label}' is {bits}", "expected 2 to 8")
        if self.weight_group is not None and self.weight_group < 1:
            raise UsageError(self.name, f"'weight-group' is {self.weight_group}", "expected 1 or more")
        if self.activations is not None and (self.weight_group is not None or self.weights != "integer"):
            what = "integer products have integer weights with one scale per channel"
            raise UsageError(self.name, what, "set activations=none for 'weight-group' and small floats")

    def run(self, graph: Graph, ctx: Context) -> Result:
        selection = Selection(self.keep, self.only, self.first == "float", self.last == "float")
        plan = place(graph, selection.floats(graph, self.name), outputs=self.edges in INTEGER_OUTPUTS)
        groups = plan.groups if self.activations is not None else []
        at_8_bits = {node for at in ("first", "last") if getattr(self, at) == "int8" for node in at_end(graph, at)}
        skipped = list(plan.skipped)
        weights = [p for p in plan.products if not is_rounded(p) and ctx.fuel.take()]
        for product in weights:
            self._round_weight(graph, product, 8 if product in at_8_bits else self.weight_bits, skipped)
        values = 0
        for group in groups:
            new = [v for v in group if quantizer_of(v) is None]
            if new and ctx.fuel.take():
                quantize_activations(graph, group, plan.readers, *self._activation_range(ctx))
                values += len(new)
        rewrite.finish(graph)
        return Result(len(weights) + values, tuple(skipped), _details(graph, plan, groups))

    def _round_weight(self, graph: Graph, product: fx.Node, bits: int, skipped: list[Skip]) -> None:
        high, weight = 2 ** (bits - 1) - 1, stored_weight(product)
        if self.weights != "integer":
            cast_weight(graph, product, _SMALL_FLOATS[self.weights], self.name)
        elif self.weight_group is None or not is_op(product, "linear"):
            quantize_weight(graph, product, high)
        elif weight is not None and shape(weight)[1] % self.weight_group:
            inputs = f"groups of {self.weight_group} do not divide its {shape(weight)[1]} inputs"
            skipped.append(Skip.at(product, f"{inputs}; it has a scale per channel"))
            quantize_weight(graph, product, high)
        else:
            quantize_groups(graph, product, high, self.weight_group)

    def _activation_range(self, ctx: Context) -> tuple[int, int]:
        kind = self.activations
        if kind == "target":
            if ctx.target is None:
                raise UsageError(self.name, "'activations' is 'target' and no target was given", "pass target=...")
            kind = _MACHINE_ACTIVATIONS.get((ctx.target.kind, ctx.target.machine), "int8")
        if kind == "int16":
            return -(2**15), 2**15 - 1
        steps = 2**self.activation_bits
        return (0, steps - 1) if kind == "uint8" else (-steps // 2, steps // 2 - 1)


def _written(choice: str | None) -> str:
    return choice or "none"


def _details(graph: Graph, plan: Placement, groups: list[list[fx.Node]]) -> dict:
    return {
        "products": len(graph.calls(*WEIGHT_AXIS)),
        "quantized_products": sum(map(is_rounded, plan.products)),
        "weights": len(graph.calls(WEIGHT_QUANTIZER)),
        "activations": sum(quantizer_of(v) is not None for group in groups for v in group),
        "shared_scales": [[v.name for v in group] for group in groups if len(group) > 1],
    }
