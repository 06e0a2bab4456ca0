"""insert-fake-quant: place quantizers on the weights and activations that integer kernels will read."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import fx

from ...ir import rewrite
from ...ir.errors import UsageError
from ...ir.graph import Graph, named_tensors
from ...ir.ops import arguments, is_op, op_name
from ...ir.shapes import shape
from ..base import Context, Pass, Result
from .placement import WEIGHT_QUANTIZER, Placement, place, quantizer_of
from .rules import WEIGHT_AXIS, stored_weight

# Signedness that the machine's int8 instructions want: x86 multiplies u8 by s8, ARM and CUDA s8 by s8.
_MACHINE_ACTIVATIONS = {("cpu", "x86_64"): "uint8"}

_UNSET = float("inf")  # a scale before calibration: whatever runs through it becomes NaN


@dataclass(frozen=True)
class InsertFakeQuant(Pass):
    """Quantize and dequantize values in place, as integer kernels will, in a graph that stays float and trainable.

    before:  %y = conv2d(%x, conv.weight);  %z = relu(%y);  %u = conv2d(%z, ...)
    after:   %xq = fake_quantize(%x, x.activation_scale, ...);  %wq = fake_quantize(conv.weight, conv.weight_scale, ...)
             %y = conv2d(%xq, %wq);  %z = relu(%y);  %zq = fake_quantize(%z, relu.activation_scale, ...)
    skips:   a product listed in 'keep'; a computed weight; a constant or integer operand; padding with other than
             zero; an op between integer ops that has no integer form

    Weights are quantized per output channel, symmetric; activations per tensor, affine. The quantizer of a conv stands
    behind its batch norm and clip (relu, relu6, ...); pooling by maximum, reshapes and the like pass a scale on;
    inputs of a concat share one. Inputs of the model are quantized, outputs are not. Batch norm is best folded
    before; where it is not, it counts as part of the conv. Scales are infinite until `calibrate` sets them, so that
    running the graph too early yields NaN and cannot go unseen. Rounding is half to even, then the zero point is
    added, then the clip (as torch.fake_quantize_per_tensor_affine does), with a straight-through gradient.

    Source: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
    inference, CVPR 2018, arXiv:1712.05877; per channel weights: Krishnamoorthi, arXiv:1806.08342.
    """

    name: ClassVar[str] = "insert-fake-quant"
    provides: ClassVar[frozenset[str]] = frozenset({"fake-quant"})
    drops: ClassVar[frozenset[str]] = frozenset({"calibrated"})

    keep: tuple[str, ...] = ()
    """Layers that stay in float: names or patterns of weights or layers (`conv1`, `classifier.*`)."""
    activations: str = "int8"
    """int8, uint8, or target: what the target's int8 instructions want."""
    weight_bits: int = 8
    """2 to 8."""
    activation_bits: int = 8
    """2 to 8."""

    def __post_init__(self) -> None:
        if self.activations not in ("int8", "uint8", "target"):
            what = f"'activations' is '{self.activations}'"
            raise UsageError(self.name, what, "expected int8, uint8 or target")
        for label, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            if not 2 <= bits <= 8:
                raise UsageError(self.name, f"'{label.replace('_', '-')}' is {bits}", "expected 2 to 8")

    def run(self, graph: Graph, ctx: Context) -> Result:
        plan = place(graph, self._kept(graph))
        low, high = self._activation_range(ctx)
        weights = [p for p in plan.products if not _has_weight_quantizer(p) and ctx.fuel.take()]
        for product in weights:
            _quantize_weight(graph, product, 2 ** (self.weight_bits - 1) - 1)
        values = 0
        for group in plan.groups:
            new = [v for v in group if quantizer_of(v) is None]
            if new and ctx.fuel.take():
                _quantize_activations(graph, group, plan, low, high)
                values += len(new)
        rewrite.finish(graph)
        return Result(len(weights) + values, tuple(plan.skipped), _details(graph, plan))

    def _kept(self, graph: Graph) -> dict[fx.Node, str]:
        """The products that `keep` names. Raises UsageError for a pattern that names none."""
        named = {p: w.target for p in graph.calls(*WEIGHT_AXIS) if (w := stored_weight(p)) is not None}
        kept: dict[fx.Node, str] = {}
        for pattern in self.keep:
            matches = [p for p, name in named.items() if _matches(str(name), pattern)]
            if not matches:
                known = ", ".join(sorted(map(str, named.values()))[:5]) or "none"
                raise UsageError(self.name, f"'keep' holds '{pattern}', which names no layer", f"weights: {known}, ...")
            for product in matches:
                kept.setdefault(product, f"'keep' lists '{pattern}'")
        return kept

    def _activation_range(self, ctx: Context) -> tuple[int, int]:
        kind = self.activations
        if kind == "target":
            if ctx.target is None:
                raise UsageError(self.name, "'activations' is 'target' and no target was given", "pass target=...")
            kind = _MACHINE_ACTIVATIONS.get((ctx.target.kind, ctx.target.machine), "int8")
        steps = 2**self.activation_bits
        return (0, steps - 1) if kind == "uint8" else (-steps // 2, steps // 2 - 1)


def _matches(weight: str, pattern: str) -> bool:
    layer = weight.rpartition(".")[0]
    return fnmatchcase(weight, pattern) or fnmatchcase(layer, pattern)


def _has_weight_quantizer(product: fx.Node) -> bool:
    return is_op(arguments(product).weight, WEIGHT_QUANTIZER)


def _quantize_weight(graph: Graph, product: fx.Node, high: int) -> None:
    weight = stored_weight(product)
    assert weight is not None
    axis = WEIGHT_AXIS[op_name(product)]
    scale, zero_point = _add_parameters(graph, f"{weight.target}", (shape(weight)[axis],), before=product)
    target = torch.ops.aten.fake_quantize_per_channel_affine.default
    args = (weight, scale, zero_point, axis, -high, high)
    quantized = rewrite.insert(graph, target, args, before=product, name=f"{weight.name}_quantized")
    rewrite.set_argument(graph, product, "weight", quantized)


def _quantize_activations(graph: Graph, group: list[fx.Node], plan: Placement, low: int, high: int) -> None:
    """One quantizer behind each value of a group, all reading the same scale and zero point."""
    known = [q for value in group if (q := quantizer_of(value)) is not None]
    if known:
        scale, zero_point = known[0].args[1:3]
    else:
        first = next(iter(graph.nodes))
        scale, zero_point = _add_parameters(graph, _activation_name(graph, group[0]), (), before=first)
    target = torch.ops.aten.fake_quantize_per_tensor_affine.tensor_qparams
    for value in group:
        if quantizer_of(value) is None:
            readers = plan.readers[value]
            args = (value, scale, zero_point, low, high)
            name = f"{value.name}_quantized"
            quantized = rewrite.insert(graph, target, args, after=_end_of_inputs(graph, value), like=value, name=name)
            for reader in readers:
                reader.replace_input_with(value, quantized)


def _add_parameters(graph: Graph, name: str, extents: tuple[int, ...], *, before: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Scale and zero point as buffers `<name>_scale`, `<name>_zero_point`, not calibrated yet."""
    scale = rewrite.add_weight(graph, f"{name}_scale", torch.full(extents, _UNSET), before=before)
    zeros = torch.zeros(extents, dtype=torch.int32)
    return scale, rewrite.add_weight(graph, f"{name}_zero_point", zeros, before=before)


def _activation_name(graph: Graph, value: fx.Node) -> str:
    """`relu.activation`; `relu_value.activation` where a weight is called `relu`, for it can hold no buffer."""
    taken = named_tensors(graph.module)
    name = value.name
    while name in taken:
        name = f"{name}_value"
    return f"{name}.activation"


def _end_of_inputs(graph: Graph, value: fx.Node) -> fx.Node:
    return value if value.op != "placeholder" else graph.module.graph.find_nodes(op="placeholder")[-1]


def _details(graph: Graph, plan: Placement) -> dict:
    return {
        "products": len(graph.calls(*WEIGHT_AXIS)),
        "quantized_products": sum(map(_has_weight_quantizer, plan.products)),
        "weights": len(graph.calls(WEIGHT_QUANTIZER)),
        "activations": sum(quantizer_of(v) is not None for group in plan.groups for v in group),
        "shared_scales": [[v.name for v in group] for group in plan.groups if len(group) > 1],
    }
