"""Fixing the batch: a graph without symbolic extents, for code that is compiled for one shape."""

import torch

from . import rewrite, shapes
from .errors import UsageError
from .graph import Graph
from .shapes import TensorSpec


def fix_batch(graph: Graph, batch: int) -> Graph:
    """A copy in which every symbolic extent is `batch` and shape arithmetic is replaced by its result.

    Of a part of a model (`capture_parts`) only the batch is fixed so; heights and widths become those of its example.

    Raises UsageError for a batch below 1.
    """
    if batch < 1:
        raise UsageError("batch", f"{batch} was given", "expected 1 or more")
    fixed = graph.copy()
    specs = [
        TensorSpec(node.name, value.dtype, tuple(shapes.concrete(extent, batch) for extent in value.shape))
        for node in shapes.input_nodes(fixed.module.graph)
        for value in [node.meta["val"]]
    ]
    shapes.propagate(fixed.module, specs)
    for node in list(fixed.nodes):
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, (int, float, torch.SymInt)):
            node.replace_all_uses_with(_number(value))  # type: ignore[arg-type]
    rewrite.finish(fixed)
    return fixed


def _number(value: int | float | torch.SymInt) -> int | float:
    return shapes.size(value) if isinstance(value, torch.SymInt) else value
