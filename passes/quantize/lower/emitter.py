"""Inserting integer calls into a graph that is being lowered."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from ....ir import rewrite
from ....ir.graph import Graph
from .quantized import Grid, Quantized

_OPS = torch.ops.planish


class Emitter:
    """Adds calls right before `at`, the float node that is being lowered.

    `of` is the float node that a call computes: it gives the call its name and its source line.
    """

    def __init__(self, graph: Graph, at: fx.Node):
        self.graph, self.at = graph, at
        self._weights: dict[str, torch.Tensor] = {}
        self._floats: dict[fx.Node, fx.Node] = {}

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """For a while, calls are added before this node."""
        at, self.at = self.at, node
        yield
        self.at = at

    def sums(self, op: str, of: fx.Node, *args: Any) -> fx.Node:
        """A call whose value is int32."""
        return self._call(op, of, args, "int32")

    def integers(self, op: str, of: fx.Node, *args: Any) -> fx.Node:
        """A call whose value is 8-bit integers."""
        return self._call(op, of, args, "int8")

    def store(self, op: str, of: fx.Node, grid: Grid, *args: Any) -> fx.Node:
        """A call whose value is 8-bit integers on `grid`, whose ends and dtype are its last arguments."""
        return self.integers(op, of, *args, grid.zero_point, grid.low, grid.high, grid.dtype)

    def requantize(self, of: fx.Node, acc: fx.Node, multiplier: torch.Tensor, axis: int, grid: Grid) -> fx.Node:
        """int32 sums times `multiplier` ([] or [channels]), on `grid`."""
        return self.store("requantize", of, grid, acc, self.weight(f"{acc.name}.multiplier", multiplier), axis)

    def float_sums(self, of: fx.Node, acc: fx.Node, scale: torch.Tensor, axis: int) -> fx.Node:
        """int32 sums as float32."""
        return self._call("dequantize_int32", of, (acc, self.weight(f"{acc.name}.scale", scale), axis), "float")

    def move(self, target: Any, of: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        """An ATen call that moves integers, 8-bit or int32."""
        return rewrite.insert(self.graph, target, args, kwargs, before=self.at, like=of, name=f"{of.name}_int")

    def dequantized(self, of: fx.Node, value: Quantized) -> fx.Node:
        """The float form of an integer value, made once."""
        if value.node not in self._floats:
            args = value.node, value.grid.scale, value.grid.zero_point
            is_input = value.node.op == "placeholder"  # all inputs come before all calls
            after = self.graph.module.graph.find_nodes(op="placeholder")[-1] if is_input else value.node
            self._floats[value.node] = rewrite.insert(
                self.graph, _OPS.dequantize.default, args, after=after, like=of, name=f"{of.name}_float"
            )
        return self._floats[value.node]

    def weight(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """A weight of this name. Equal ones asked for under one name stay tied."""
        known = self._weights.setdefault(name, tensor)
        same = known if known.dtype == tensor.dtype and torch.equal(known, tensor) else tensor
        return rewrite.add_weight(self.graph, name, same, before=self.at)

    def _call(self, op: str, of: fx.Node, args: tuple, what: str) -> fx.Node:
        target = getattr(_OPS, op).default
        return rewrite.insert(self.graph, target, args, before=self.at, like=of, name=f"{of.name}_{what}")
