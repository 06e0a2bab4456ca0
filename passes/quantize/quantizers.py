"""Fake quantizers on their way into a graph: of weights, of activations, and casts to smaller floats."""

import torch
from torch import fx

from ...ir import rewrite
from ...ir.errors import UsageError
from ...ir.graph import Graph, named_tensors
from ...ir.ops import op_name
from ...ir.shapes import shape
from .placement import quantizer_of
from .rules import WEIGHT_AXIS, stored_weight

_UNSET = float("inf")  # a scale before calibration: whatever runs through it becomes NaN
_PER_CHANNEL = torch.ops.aten.fake_quantize_per_channel_affine.default
_PER_TENSOR = torch.ops.aten.fake_quantize_per_tensor_affine.tensor_qparams


def quantize_weight(graph: Graph, product: fx.Node, high: int) -> None:
    """Levels -high..high, one scale per output channel."""
    weight = _weight(product)
    axis = WEIGHT_AXIS[op_name(product)]
    scale, zero_point = _add_parameters(graph, f"{weight.target}", (shape(weight)[axis],), before=product)
    args = (weight, scale, zero_point, axis, -high, high)
    quantized = rewrite.insert(graph, _PER_CHANNEL, args, before=product, name=f"{weight.name}_quantized")
    rewrite.set_argument(graph, product, "weight", quantized)


def quantize_groups(graph: Graph, product: fx.Node, high: int, group: int) -> None:
    """Levels -high..high, one scale per `group` neighbouring inputs of each output of a linear layer."""
    weight = _weight(product)
    extents = list(graph.weight(weight).shape)
    groups = graph.weight(weight).numel() // group
    view = torch.ops.aten.view.default
    name = weight.name
    scale, zero_point = _add_parameters(graph, f"{weight.target}", (groups,), before=product)
    rows = rewrite.insert(graph, view, (weight, [groups, group]), before=product, name=f"{name}_groups")
    args = (rows, scale, zero_point, 0, -high, high)
    quantized = rewrite.insert(graph, _PER_CHANNEL, args, before=product, name=f"{name}_quantized")
    whole = rewrite.insert(graph, view, (quantized, extents), before=product, name=f"{name}_whole")
    rewrite.set_argument(graph, product, "weight", whole)


def cast_weight(graph: Graph, product: fx.Node, dtype: torch.dtype, where: str) -> None:
    """Round a weight to a smaller float and back. Raises UsageError for a value that the smaller one does not reach."""
    weight = _weight(product)
    largest = float(graph.weight(weight).detach().abs().max())
    if largest > torch.finfo(dtype).max:
        kind = str(dtype).removeprefix("torch.")
        what = f"weight '{weight.target}' holds {largest:g}, {kind} ends at {torch.finfo(dtype).max:g}"
        raise UsageError(where, what, "take bfloat16 or list the layer in 'keep'")
    to = torch.ops.aten.to.dtype
    small = rewrite.insert(graph, to, (weight, dtype), before=product, name=f"{weight.name}_small")
    back = rewrite.insert(graph, to, (small, torch.float32), before=product, name=f"{weight.name}_rounded")
    rewrite.set_argument(graph, product, "weight", back)


def quantize_activations(
    graph: Graph, group: list[fx.Node], readers: dict[fx.Node, list[fx.Node]], low: int, high: int
) -> None:
    """One quantizer behind each value of a group, all reading the same scale and zero point."""
    known = [q for value in group if (q := quantizer_of(value)) is not None]
    if known:
        scale, zero_point = known[0].args[1:3]
    else:
        first = next(iter(graph.nodes))
        scale, zero_point = _add_parameters(graph, _activation_name(graph, group[0]), (), before=first)
    for value in (v for v in group if quantizer_of(v) is None):
        args = (value, scale, zero_point, low, high)
        after, name = _end_of_inputs(graph, value), f"{value.name}_quantized"
        quantized = rewrite.insert(graph, _PER_TENSOR, args, after=after, like=value, name=name)
        for reader in readers[value]:
            reader.replace_input_with(value, quantized)


def _weight(product: fx.Node) -> fx.Node:
    weight = stored_weight(product)
    assert weight is not None
    return weight


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
