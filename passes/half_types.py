"""A graph whose products become float16: which calls follow, and the conversions between them and the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..ir import rewrite, shapes
from ..ir.graph import Graph
from ..ir.ops import arguments, is_op

# Calls that are float16 where what they read is: they move values, compare them, or round each result once.
FOLLOWERS = frozenset(
    {
        "relu", "relu6", "hardtanh", "clamp", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh", "gelu",
        "add", "mul", "cat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "pad", "constant_pad_nd",
        "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "expand", "slice",
        "dropout", "contiguous", "clone", "upsample_nearest2d",
    }
)  # fmt: skip


class HalfTypes:
    """The graph as it is walked, in order: which values are float16 so far, and the conversions that were made."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self._half: set[fx.Node] = set()
        self._converted: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        self._weights: dict[int, fx.Node] = {}

    def product(self, node: fx.Node) -> None:
        """A product of float16 operands."""
        call = arguments(node)
        node.replace_input_with(call.input, self._as(torch.float16, call.input, node))
        for weight in filter(None, (call.weight, call.bias)):
            node.replace_input_with(weight, self._half_weight(weight, node))
        self._is_half(node)

    def other(self, node: fx.Node) -> None:
        """A follower of float16 values reads all its operands so; any other call, and the model's output, as before."""
        floats = [n for n in node.all_input_nodes if _dtype(n) in (torch.float16, torch.float32)]
        follows = is_op(node, *FOLLOWERS) and node.kwargs.get("dtype") is None and _dtype(node) == torch.float32
        if follows and any(n in self._half for n in floats) and all(n.op != "get_attr" for n in floats):
            for value in floats:
                node.replace_input_with(value, self._as(torch.float16, value, node))
            self._is_half(node)
        elif not is_op(node, "sym_size"):  # which asks for a shape
            for value in (n for n in floats if n in self._half):
                node.replace_input_with(value, self._as(torch.float32, value, node))

    def _is_half(self, node: fx.Node) -> None:
        node.meta["val"] = shapes.infer(node)
        self._half.add(node)

    def _as(self, dtype: torch.dtype, value: fx.Node, before: fx.Node) -> fx.Node:
        """The value in a dtype: converted once, before its first reader."""
        if _dtype(value) == dtype:
            return value
        if (value, dtype) not in self._converted:
            name = f"{value.name}_{'half' if dtype == torch.float16 else 'float'}"
            cast = torch.ops.aten.to.dtype
            found = rewrite.insert(self.graph, cast, (value, dtype), before=before, like=value, name=name)
            self._converted[value, dtype] = found
        return self._converted[value, dtype]

    def _half_weight(self, weight: fx.Node, before: fx.Node) -> fx.Node:
        """A float16 copy of a weight, one for all that read it."""
        tensor = self.graph.weight(weight)
        if id(tensor) not in self._weights:
            name = f"{weight.target}_half"
            half = tensor.detach().half()
            if isinstance(tensor, torch.nn.Parameter):
                half = torch.nn.Parameter(half, tensor.requires_grad)
            self._weights[id(tensor)] = rewrite.add_weight(self.graph, name, half, before=before)
        return self._weights[id(tensor)]


def _dtype(node: fx.Node) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)
