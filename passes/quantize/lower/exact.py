"""Whether everything that a graph computes is integers, so that every machine gives the same bytes."""

from torch import fx

from ....ir.cost import INTEGER_PRODUCTS
from ....ir.graph import Graph
from ....ir.ops import is_op, tensors
from ..rules import only_moves

# Their float results are one rounded operation on integers.
_CONVERSIONS = ("dequantize", "dequantize_int32")


def is_exact(graph: Graph) -> bool:
    """True for a graph with integer products whose float values are inputs, conversions, or moved."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return bool(graph.calls(*INTEGER_PRODUCTS)) and not any(map(_computes_floats, calls))


def _computes_floats(node: fx.Node) -> bool:
    floats = any(tensor.dtype.is_floating_point for tensor in tensors(node.meta.get("val")))
    return floats and not is_op(node, *_CONVERSIONS) and not only_moves(node)
