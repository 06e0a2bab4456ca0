"""Adding quantize and dequantize calls to a graph: which float value stands for which integers."""

from typing import Any

import torch
from torch import fx

from ...ir import rewrite
from ...ir.graph import Graph
from .operators import OPS

_aten = torch.ops.aten


class Writer:
    """Adds calls before `at`, the integer call that is being rewritten.

    zero_points  of integer values, by the node that holds them
    """

    def __init__(self, graph: Graph, zero_points: dict[fx.Node, int]):
        self.graph = graph
        self.at = self._first = next(iter(graph.nodes))
        self.zero_points = zero_points
        self._values: dict[fx.Node, fx.Node] = {}  # integers -> their distance from the zero point, in float32
        self._operands: dict[fx.Node, fx.Node] = {}  # such a value that comes straight from dequantize_linear
        self._stored: dict[fx.Node, fx.Node] = {}  # -> 8-bit integers
        self._scalars: dict[tuple, fx.Node] = {}

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return rewrite.insert(self.graph, target, args, kwargs, before=self.at, name=self.at.name)

    def constant(self, what: str, value: torch.Tensor) -> fx.Node:
        return rewrite.add_weight(self.graph, f"{self.at.name}.{what}", value, before=self.at)

    def scalar(self, what: str, value: float, dtype: torch.dtype) -> fx.Node:
        """A constant that is stored once, whoever reads it."""
        key = what, value, dtype
        if key not in self._scalars:
            self._scalars[key] = rewrite.add_weight(
                self.graph, what, torch.tensor(value, dtype=dtype), before=self._first
            )
        return self._scalars[key]

    # ------------------------------------------------------------ integers

    def knows(self, integers: fx.Node) -> bool:
        return integers in self._values

    def store(self, integers: fx.Node, x: fx.Node, low: int | None = None, high: int | None = None, scale: float = 1.0):
        """Let clamp(rint(x / scale) + zero_point, low, high) stand for `integers`."""
        dtype = integers.meta["val"].dtype
        self.store_integers(integers, self._quantize(x, scale, self.zero_points.get(integers, 0), dtype))
        ends = torch.iinfo(dtype)
        if low is not None and high is not None and (low, high) != (ends.min, ends.max):
            zero = self.zero_points[integers]
            self.moved(integers, self.call(_aten.clamp.default, self._values[integers], low - zero, high - zero))

    def store_integers(self, integers: fx.Node, q: fx.Node) -> None:
        """Let other 8-bit integers stand for `integers`."""
        self._stored[integers] = q
        self._values[integers] = self._operands[integers] = self._dequantize(integers, q)

    def moved(self, integers: fx.Node, value: fx.Node) -> None:
        """Let a float value stand for `integers`; it is quantized once a product reads it."""
        self._values[integers] = value
        self._operands.pop(integers, None)
        self._stored.pop(integers, None)

    def value(self, integers: fx.Node) -> fx.Node:
        """integers - zero_point, in float32."""
        return self._values[integers]

    def value_or_itself(self, node: fx.Node) -> fx.Node:
        return self._values.get(node, node)

    def stored_or_itself(self, node: fx.Node) -> fx.Node:
        return self.stored(node) if self.knows(node) else node

    def stored(self, integers: fx.Node) -> fx.Node:
        """The 8-bit integers themselves."""
        if integers not in self._stored:
            zero, dtype = self.zero_points.get(integers, 0), integers.meta["val"].dtype
            self._stored[integers] = self._quantize(self._values[integers], 1.0, zero, dtype)
        return self._stored[integers]

    def operand(self, integers: fx.Node) -> fx.Node:
        """Their float value as an integer kernel's operand: straight from dequantize_linear."""
        if integers not in self._operands:
            self._operands[integers] = self._dequantize(integers, self.stored(integers))
        return self._operands[integers]

    def scaled(self, integers: fx.Node, factor: float) -> fx.Node:
        """`value` times a number, rounded once."""
        if integers in self._stored and factor > 0:
            return self._dequantize(integers, self._stored[integers], factor)
        return self.times(self.value(integers), factor)

    def matrix(self, integers: fx.Node, columns: int) -> fx.Node:
        """`operand`, with all dims but the last as one."""
        flat = self.call(_aten.reshape.default, self.value(integers), [-1, columns])
        zero, dtype = self.zero_points.get(integers, 0), integers.meta["val"].dtype
        return self._dequantize(integers, self._quantize(flat, 1.0, zero, dtype))

    # ------------------------------------------------------------ arithmetic

    def times(self, x: fx.Node, factor: float) -> fx.Node:
        return x if factor == 1.0 else self.call(_aten.mul.Tensor, x, self.scalar("factor", factor, torch.float32))

    def times_each(self, x: fx.Node, factors: torch.Tensor, axis: int) -> fx.Node:
        """x * factors; factors: [] or, along `axis` of x, [channels]."""
        rank = x.meta["val"].ndim
        if factors.ndim:
            factors = factors.reshape([-1 if dim == axis % rank else 1 for dim in range(rank)])
        return self.call(_aten.mul.Tensor, x, self.constant("multiplier", factors))

    def weight(self, weight: fx.Node, scale: torch.Tensor, axis: int = 0) -> fx.Node:
        """An int8 weight or int32 bias as float. scale: [] or, along `axis`, [channels]."""
        zeros = torch.zeros(scale.shape, dtype=weight.meta["val"].dtype)
        if scale.ndim:
            scale_node, zero = self.constant("multiplier", scale), self.constant("weight_zero_point", zeros)
        else:
            scale_node, zero = self._scale(float(scale)), self.scalar("zero_point", 0, zeros.dtype)
        return self.call(OPS.dequantize_linear.default, weight, scale_node, zero, axis)

    def _quantize(self, x: fx.Node, scale: float, zero_point: int, dtype: torch.dtype) -> fx.Node:
        zero = self.scalar("zero_point", zero_point, dtype)
        return self.call(OPS.quantize_linear.default, x, self._scale(scale), zero)

    def _dequantize(self, integers: fx.Node, q: fx.Node, scale: float = 1.0) -> fx.Node:
        zero = self.scalar("zero_point", self.zero_points.get(integers, 0), q.meta["val"].dtype)
        return self.call(OPS.dequantize_linear.default, q, self._scale(scale), zero, 0)

    def _scale(self, value: float) -> fx.Node:
        return self.scalar("scale", value, torch.float32)
