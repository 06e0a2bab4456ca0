"""lower-weights: linear layers whose weights alone are quantized, to packed weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ....ir import rewrite
from ....ir.errors import UsageError
from ....ir.graph import Graph
from ....ir.integers.packed_weights import WEIGHT_ONLY, pack_int4
from ....ir.ops import arguments, describe, is_op
from ...base import Context, Pass, Result, Skip
from ..placement import ACTIVATION_QUANTIZER
from ..rules import WEIGHT_AXIS, data_inputs, is_rounded, only_moves, stored_weight, weight_quantizer
from .emitter import Emitter

_SMALL_FLOATS = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LowerWeights(Pass):
    """Store the weights of linear layers in as few bits as they have; they are unpacked where they are multiplied.

    before:  %wq = fake_quantize(%fc.weight, ...);  %y = linear(%x, %wq, %b)
    after:   %y = linear_weight_only(%x, %fc.weight_int4, %fc.weight_scales, %b)
    skips:   a layer that is not linear; one that reads quantized activations (lower-integers takes it); a computed
             weight or bias; weights with zero points or rounded to another type; a graph in which no weight is rounded

    Weights of up to 4 bits are stored as int4, two a byte, of up to 8 bits as int8, with a float32 scale for each
    output, or group of its inputs; those rounded to float16 or bfloat16 as that. Activations, sums and results stay
    float32. A kernel scales the sums of each group instead of its weights, which differs in float32 rounding. An odd
    number of inputs leaves half a byte of each output unused. A weight becomes a buffer: it has no gradient.
    Raises UsageError for weights whose scales `calibrate` has not set.
    """

    name: ClassVar[str] = "lower-weights"
    provides: ClassVar[frozenset[str]] = frozenset({"integers"})

    def run(self, graph: Graph, ctx: Context) -> Result:
        graph.eval()
        skipped, changed = [], 0
        before = _weight_bytes(graph)
        emitter = Emitter(graph, next(iter(graph.nodes)))
        rounded = [node for node in graph.calls(*WEIGHT_AXIS) if is_rounded(node)]
        for node in rounded:
            if why := _why_not(graph, node):
                skipped.append(Skip.at(node, f"{why}; its weights stay rounded floats"))
            elif ctx.fuel.take():
                _lower(graph, emitter, node)
                changed += 1
        rewrite.finish(graph)
        if not (rounded or skipped):
            skipped = [Skip("the graph", "no weight is rounded")]
        details = {"packed_layers": len(graph.calls(WEIGHT_ONLY)), "weight_bytes": (before, _weight_bytes(graph))}
        return Result(changed, tuple(skipped), details, withheld=frozenset() if changed else self.provides)


def _why_not(graph: Graph, node: fx.Node) -> str:
    """Why a product with rounded weights keeps them as floats; empty for one that is lowered."""
    if not is_op(node, "linear"):
        return "only linear layers compute with packed weights"
    if _is_quantized(*data_inputs(node)):
        return "its input is quantized too"
    if stored_weight(node) is None:
        return "its weight is computed, not stored"
    bias = arguments(node).bias
    if bias is not None and bias.op != "get_attr":
        return "its bias is computed, not stored"
    quantizer = weight_quantizer(node)
    if quantizer is None:
        dtype: Any = _cast_to(node)
        return "" if dtype in _SMALL_FLOATS else f"its weight is rounded to {dtype}"
    call = arguments(quantizer)
    if not bool(torch.isfinite(graph.weight(call.scale)).all()):
        raise UsageError(describe(node), "its weight has no scales yet", "calibrate first", "run calibrate{data=none}")
    return "its weight has zero points" if bool(graph.weight(call.zero_point).any()) else ""


def _is_quantized(value: fx.Node) -> bool:
    """True for what a quantizer of activations yields, or what moves such values."""
    while value.op == "call_function":
        if is_op(value, ACTIVATION_QUANTIZER):
            return True
        if not only_moves(value):
            return False
        value = data_inputs(value)[0]
    return False


def _lower(graph: Graph, emitter: Emitter, node: fx.Node) -> None:
    call, emitter.at = arguments(node), node
    held: Any = stored_weight(node)
    weight = graph.weight(held).detach()
    quantizer, scale = weight_quantizer(node), None
    if quantizer is None:
        dtype = _cast_to(node)
        stored, kind = weight.to(dtype), str(dtype).removeprefix("torch.")
    else:
        rows = arguments(quantizer)
        scales = graph.weight(rows.scale).detach()
        q = _integers(weight.reshape(len(scales), -1), scales, rows.quant_min, rows.quant_max).reshape(weight.shape)
        fits_4_bits = rows.quant_min >= -8 and rows.quant_max <= 7
        stored, kind = (pack_int4(q), "int4") if fits_4_bits else (q, "int8")
        scale = emitter.weight(f"{held.target}_scales", scales.reshape(len(weight), -1).clone())
    packed = emitter.weight(f"{held.target}_{kind}", stored)
    op = torch.ops.planish.linear_weight_only.default
    args = call.input, packed, scale, call.bias
    new = rewrite.insert(graph, op, args, before=node, like=node, name=f"{node.name}_{kind}")
    rewrite.replace(graph, node, new)


def _integers(rows: torch.Tensor, scales: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """int8 [rows, columns]: a scale for each row, rounded as the fake quantizer rounds."""
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    rounded = torch.fake_quantize_per_channel_affine(rows, scales, zeros, 0, low, high)
    return rounded.div_(scales.unsqueeze(1)).round_().to(torch.int8)


def _cast_to(node: fx.Node) -> torch.dtype:
    """The dtype that a weight is cast to before it is cast back."""
    back: Any = arguments(node).weight
    return back.args[0].args[1]


def _weight_bytes(graph: Graph) -> int:
    unique = {id(t): t for t in graph.weights.values()}.values()
    return sum(t.numel() * t.element_size() for t in unique)
