"""What a pipeline made of a model: trainable, and with the batch that code is made for."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch.utils import _pytree as pytree

from .backends.artifact import Edges, Golden
from .ir import call_form
from .ir.graph import Graph
from .ir.specialize import fix_batch


class Thinned:
    """A thinned model. One that was found on disk becomes a graph when somebody asks: its code needs none.

    edges      inputs and outputs, with the batch that code is made for
    out_spec   the nesting of the outputs
    """

    def __init__(
        self,
        make: Callable[[], Graph],
        batch: int | None,
        edges: Edges,
        out_spec: pytree.TreeSpec,
        golden: Golden | None = None,
    ):
        self._make, self._batch, self._golden = make, batch, golden
        self.edges, self.out_spec = edges, out_spec

    @staticmethod
    def of(graph: Graph, batch: int | None) -> "Thinned":
        """batch: what a symbolic extent becomes for the code; None where the code takes any."""
        fixed = graph if batch is None else fix_batch(graph, batch)
        made = Thinned(lambda: graph, batch, Edges.of(fixed), call_form.output_spec(fixed.module.graph))
        made.fixed = fixed
        return made

    @cached_property
    def graph(self) -> Graph:
        """The thinned model, trainable; changes to it leave the code as it is."""
        return self._make()

    @cached_property
    def fixed(self) -> Graph:
        """With the batch that code is made for; the graph itself where the code takes any."""
        return self.graph if self._batch is None else fix_batch(self._make(), self._batch)

    def golden(self) -> Golden:
        """A random input, and the answer that PyTorch gives for the thinned graph."""
        if self._golden is None:
            inputs = self.fixed.example_inputs(seed=0)
            with torch.no_grad():
                self._golden = list(inputs), pytree.tree_leaves(self.fixed.module(*inputs))
        return self._golden
