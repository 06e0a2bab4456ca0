"""Ops that only move numbers: the same ATen call, on integers."""

from torch import fx

from ....ir import rewrite
from ....ir.ops import arguments, op_name
from ..rules import data_inputs
from .emitter import Emitter
from .quantized import Quantized

_IDENTITIES = frozenset(
    {"dropout", "feature_dropout", "contiguous", "clone", "alias", "fake_quantize_per_tensor_affine"}
)
# ATen has no kernel of these for int8.
_FLOAT_ONLY = frozenset({"max_pool1d", "adaptive_max_pool2d", "upsample_nearest2d"})
_FILLED = frozenset({"pad", "constant_pad_nd"})


def emit(emitter: Emitter, node: fx.Node, inputs: list[Quantized]) -> Quantized | str:
    """The integer form of a call that moves numbers (or puts several side by side), or why it has none."""
    first = inputs[0]
    if not all(value.grid.means_the_same(first.grid) for value in inputs):
        return "its inputs have different scales"
    if op_name(node) in _FLOAT_ONLY:
        return "it has no integer form"
    if op_name(node) in _IDENTITIES:
        return first
    integers = dict(zip(data_inputs(node), (value.node for value in inputs), strict=True))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: integers.get(n, n))
    moved = rewrite.insert(emitter.graph, node.target, args, kwargs, before=node, name=f"{node.name}_int8")  # type: ignore[arg-type]
    if op_name(node) in _FILLED and getattr(arguments(node), "mode", "constant") == "constant":
        rewrite.set_argument(emitter.graph, moved, "value", first.grid.zero_point)
    return Quantized(moved, first.grid)
