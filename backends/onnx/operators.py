"""QuantizeLinear, DequantizeLinear and friends as ops of a graph, and how torch.onnx writes them.

A quantized graph is rewritten (qdq.py) into float ATen ops between these four before it is exported. They are written
in a domain of their own, so that no optimizer of float graphs folds a dequantized weight; `standard` names them as ONNX
does once those have run.
"""

import onnx
import torch
from onnxscript.values import Op, Opset
from torch import fx

from ...ir.graph import Graph

DOMAIN = "planish"
_NAMESPACE = "planish::"  # of planish.ir.integers
_SCHEMAS = 18  # the opset that torch.onnx converts up from; what these ops take has only grown since


def _own(name: str) -> Op:
    """An op of ONNX under our domain."""
    return Op(Opset(DOMAIN, 1), name, onnx.defs.get_schema(name, _SCHEMAS))


def is_integer_op(node: fx.Node) -> bool:
    """True for a call of planish.ir.integers."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.name.startswith(_NAMESPACE)


def has_integers(graph: Graph) -> bool:
    return any(map(is_integer_op, graph.nodes))


@torch.library.custom_op("planish_onnx::quantize_linear", mutates_args=())
def quantize_linear(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """saturate(rint(x / scale) + zero_point) in the dtype of zero_point. scale, zero_point: []."""
    ends = torch.iinfo(zero_point.dtype)
    steps = torch.round(x / scale).nan_to_num(0.0) + zero_point
    return steps.clamp(ends.min, ends.max).to(zero_point.dtype)


@quantize_linear.register_fake
def _(x, scale, zero_point):
    return torch.empty_like(x, dtype=zero_point.dtype)


@torch.library.custom_op("planish_onnx::dequantize_linear", mutates_args=())
def dequantize_linear(q: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int) -> torch.Tensor:
    """(q - zero_point) * scale. scale and zero_point: [] or, along `axis` of q, [channels]."""
    shape = [-1 if dim == axis else 1 for dim in range(q.ndim)] if scale.ndim else []
    return (q.to(torch.int64) - zero_point.reshape(shape)).float() * scale.reshape(shape)


@dequantize_linear.register_fake
def _(q, scale, zero_point, axis):
    return torch.empty_like(q, dtype=torch.float32)


@torch.library.custom_op("planish_onnx::sum_of_two", mutates_args=())
def sum_of_two(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left + right, broadcast. Written as Sum: onnxruntime turns Add between quantized values into QLinearAdd, which
    adds the zero point before it rounds, so that ties go the other way where the zero point is odd."""
    return left + right


@sum_of_two.register_fake
def _(left, right):
    return torch.empty_like(left + right)


@torch.library.custom_op("planish_onnx::look_up", mutates_args=())
def look_up(table: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """table[q], a negative q counting from the end. table: [256]; q: int8 or uint8."""
    return table[q.to(torch.int64)]


@look_up.register_fake
def _(table, q):
    return torch.empty_like(q, dtype=table.dtype)


def _quantize_linear(x, scale, zero_point):
    return _own("QuantizeLinear")(x, scale, zero_point)


def _dequantize_linear(q, scale, zero_point, axis: int):
    return _own("DequantizeLinear")(q, scale, zero_point, axis=axis)


def _sum(left, right):
    return _own("Sum")(left, right)


def _look_up(table, q):
    return _own("Gather")(table, _own("Cast")(q, to=onnx.TensorProto.INT32), axis=0)


OPS = torch.ops.planish_onnx
TRANSLATIONS = {
    OPS.quantize_linear.default: _quantize_linear,
    OPS.dequantize_linear.default: _dequantize_linear,
    OPS.sum_of_two.default: _sum,
    OPS.look_up.default: _look_up,
}


def standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with our ops as ONNX's own, which they are in all but the name of their domain."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for node in twin.graph.node:
        if node.domain == DOMAIN:
            node.domain = ""
    kept = [entry for entry in twin.opset_import if entry.domain != DOMAIN]
    del twin.opset_import[:]
    twin.opset_import.extend(kept)
    return twin
