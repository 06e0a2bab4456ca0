"""How closely a runtime must agree with PyTorch, output by output."""

from enum import IntEnum

import torch
from torch import fx

from ...ir.graph import Graph
from ...ir.ops import op_name, tensors
from ...passes.quantize.rules import only_moves
from .operators import is_integer_op

# Against PyTorch in the same dtype, relative to the largest output: another order of summation, layer upon layer.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# A rounding error in front of a quantizer can move a value by a whole step of 1/255 of its range, and layers behind it
# add such steps up.
STEPS_TOLERANCE = 5e-2


class Exactness(IntEnum):
    """What an output was computed with."""

    EQUAL = 0  # integer ops and moves (of floats too): bit for bit
    ROUNDED = 1  # float arithmetic: within rounding
    STEPS = 2  # float arithmetic in front of a quantizer: within a few steps


def exactness(graph: Graph, restarts: frozenset[fx.Node] = frozenset()) -> list[Exactness]:
    """Of each output of a graph, in order. `restarts` are quantized values that are given."""
    found = levels(graph, restarts)
    return [found[node] for node in graph.module.graph.output_node().all_input_nodes]


def levels(graph: Graph, restarts: frozenset[fx.Node] = frozenset()) -> dict[fx.Node, Exactness]:
    """Of every value."""
    found: dict[fx.Node, Exactness] = {}
    for node in graph.nodes:
        worst = max((found[read] for read in node.all_input_nodes), default=Exactness.EQUAL)
        if node in restarts:
            worst = Exactness.EQUAL
        elif op_name(node) == "quantize" and worst is Exactness.ROUNDED:
            worst = Exactness.STEPS
        found[node] = max(worst, Exactness.ROUNDED) if _computes_floats(node) else worst
    return found


def tolerance(level: Exactness, dtype: torch.dtype) -> float:
    """The largest difference allowed, relative to the largest value of an output."""
    if level is Exactness.EQUAL:
        return 0.0
    rounding = TOLERANCE.get(dtype, 0.0)
    return rounding if level is Exactness.ROUNDED else max(rounding, STEPS_TOLERANCE)


def _computes_floats(node: fx.Node) -> bool:
    if node.op != "call_function" or is_integer_op(node) or only_moves(node):
        return False
    values = [node.meta.get("val"), *(read.meta.get("val") for read in node.all_input_nodes)]
    return any(t.dtype.is_floating_point for value in values for t in tensors(value))
