"""The proof that a rewrite of weights left a model what it was: in float64, on random inputs, before casts."""

import torch
from torch.utils import _pytree as pytree

from ....ir.errors import VerifyError
from ....ir.graph import Graph
from ....ir.ops import describe
from ...forward import forward

TOLERANCE = 1e-9  # of the outputs' largest magnitude: some hundred layers of float64 rounding stay far below

Weights = dict[str, torch.Tensor]


def in_float64(graph: Graph) -> Weights:
    """The graph's floating-point weights by name, in float64: to be changed there before the graph is."""
    return {name: t.detach().double() for name, t in graph.weights.items() if t.dtype.is_floating_point}


def outputs(graph: Graph, weights: Weights) -> list[torch.Tensor]:
    """The model's outputs in float64, with these weights in place of its own."""
    stand_ins = {id(graph.weight(name)): tensor for name, tensor in weights.items()}
    inputs = [v.double() if v.dtype.is_floating_point else v for v in graph.example_inputs(batch=2)]
    with torch.no_grad():
        found = forward(graph, tuple(inputs), stand_ins)
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]


def prove(graph: Graph, weights: Weights, expected: list[torch.Tensor], where: str) -> None:
    """Raises VerifyError where the graph with these weights does not compute what `outputs` gave before."""
    for found, wanted in zip(outputs(graph, weights), expected, strict=True):
        error, size = float((found - wanted).abs().max()), float(wanted.abs().max())
        if not error <= TOLERANCE * max(size, 1.0):
            (output,) = graph.module.graph.find_nodes(op="output")
            what = f"the model's outputs moved by {error:.2g}, their largest being {size:.2g}"
            raise VerifyError(f"{where}, {describe(output)}", what, f"expected {TOLERANCE:g} of it")
