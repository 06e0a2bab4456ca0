"""The text form: one op per line, stable names, types at the end, weights by name and shape, never data.

    %conv2d = conv2d(%x, conv1.weight[64,3,7,7], stride=[2, 2], padding=[3, 3]) : f32[b,64,112,112]

is the first line of ResNet-18's body.
"""

from typing import Any

import torch
from torch import fx

from . import shapes
from .graph import Graph
from .ops import op_name, tensors


def text(graph: Graph) -> str:
    """The whole graph. Defaults are left out; symbolic extents are named (`b` is the batch)."""
    names = shapes.symbol_names(graph.module.graph)
    lines = [f"graph({', '.join(map(str, graph.inputs))}):"]
    lines += [f"  {_line(graph, node, names)}" for node in graph.nodes if node.op == "call_function"]
    (output,) = graph.module.graph.find_nodes(op="output")
    return "\n".join([*lines, f"  return {_value(graph, output.args[0])}"])


def node_text(graph: Graph, node: fx.Node) -> str:
    """One node's line."""
    return _line(graph, node, shapes.symbol_names(graph.module.graph))


def _line(graph: Graph, node: fx.Node, names: dict[Any, str]) -> str:
    return f"%{node.name} = {_shown_name(node)}({', '.join(_arguments(graph, node))}){_type(node, names)}"


def _shown_name(node: fx.Node) -> str:
    """`relu`, and `copy_` where the call writes into its first argument."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", op_name(node))


def _type(node: fx.Node, names: dict[Any, str]) -> str:
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt):
        return f" : {shapes.extent_text(value, names)}"
    specs = [shapes.tensor_spec("", t, names) for t in tensors(value)]
    types = [f"{shapes.short_dtype(s.dtype)}[{','.join(map(str, s.shape))}]" for s in specs]
    return f" : {', '.join(types)}" if types else ""


def _arguments(graph: Graph, node: fx.Node) -> list[str]:
    """Tensor arguments by position, others as name=value where they differ from the default."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        named = [f"{k}={_value(graph, v)}" for k, v in node.kwargs.items()]
        return [_value(graph, v) for v in node.args] + named
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    written = []
    for argument in schema.arguments:
        if argument.name not in given:
            continue
        value = given[argument.name]
        if argument.has_default_value() and argument.default_value == value:
            continue
        is_data = isinstance(value, fx.Node) or (isinstance(value, (list, tuple)) and _holds_nodes(value))
        written.append(_value(graph, value) if is_data else f"{argument.name}={_value(graph, value)}")
    return written


def _holds_nodes(values: Any) -> bool:
    return any(isinstance(v, fx.Node) for v in values)


def _value(graph: Graph, value: Any) -> str:
    if isinstance(value, fx.Node):
        if value.op != "get_attr":
            return f"%{value.name}"
        tensor = graph.weight(value)
        extents = ",".join(map(str, tensor.shape)) if isinstance(tensor, torch.Tensor) else ""
        return f"{value.target}[{extents}]"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(graph, v) for v in value)}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).removeprefix("torch.")
