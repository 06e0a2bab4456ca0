"""What must hold of every graph. Run after each pass; a failure names the node and the user's source line."""

from typing import Any

import torch
from torch import fx

from . import shapes
from .errors import VerifyError
from .graph import Graph, attribute, named_tensors
from .ops import argument_names, describe, op_name, tensors

SCALE_ARGUMENT = {
    "fake_quantize_per_tensor_affine": "scale",
    "fake_quantize_per_channel_affine": "scale",
}


def verify(graph: Graph) -> None:
    """Check structure, weights, recorded types and quantizer scales.

    Raises VerifyError naming the node (with its source line) and the rule that it breaks.
    """
    _check_structure(graph)
    _check_weights(graph)
    _check_types(graph)
    if "calibrated" in graph.properties:
        _check_scales(graph)


def _check_structure(graph: Graph) -> None:
    structure = graph.module.graph
    try:
        structure.lint()
    except RuntimeError as error:
        raise VerifyError("verify", f"the graph is malformed: {error}") from error
    for node in structure.nodes:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            raise VerifyError(describe(node), f"a node is a '{node.op}'", "graphs hold inputs, weights, calls, outputs")
        if isinstance(node.target, torch._ops.OpOverload) and len(node.args) > len(argument_names(node)):
            raise VerifyError(describe(node), f"{len(node.args)} arguments", f"the op takes {len(argument_names(node))}")


def _check_weights(graph: Graph) -> None:
    read = set()
    for node in graph.module.graph.find_nodes(op="get_attr"):
        try:
            value = attribute(graph.module, node.target)
        except AttributeError:
            raise VerifyError(describe(node), f"there is no weight '{node.target}'") from None
        if not node.users:
            raise VerifyError(describe(node), f"weight '{node.target}' is read but not used", "erase the node")
        read.add(id(value))
        if isinstance(value, torch.Tensor) and list(value.shape) != list(node.meta["val"].shape):
            what = f"weight '{node.target}' has shape {list(value.shape)}"
            raise VerifyError(describe(node), what, f"{list(node.meta['val'].shape)} is recorded")
    if graph.properties:  # a graph fresh from capture keeps counters and the like, so that checkpoints load
        unread = [name for name, t in named_tensors(graph.module).items() if id(t) not in read]
        if unread:
            raise VerifyError("verify", f"weight '{unread[0]}' has no reader", "call rewrite.finish after editing")


def _check_types(graph: Graph) -> None:
    """Shapes re-run on fake tensors must equal what is recorded."""
    names = shapes.symbol_names(graph.module.graph)
    recorded = {node: _types(node.meta.get("val"), names) for node in graph.nodes}
    twin = graph.module.graph
    before = {node: node.meta.get("val") for node in twin.nodes}
    try:
        shapes.propagate(graph.module)
        names = shapes.symbol_names(twin)
        for node in twin.nodes:
            now = _types(node.meta.get("val"), names)
            if now != recorded[node]:
                raise VerifyError(describe(node), f"its type is recorded as {recorded[node]}", f"it is {now}")
    except VerifyError:
        for node, value in before.items():
            node.meta["val"] = value
        raise


def _types(value: Any, names: dict[Any, str]) -> list[tuple]:
    return [(shapes.short_dtype(t.dtype), *(shapes.extent_text(s, names) for s in t.shape)) for t in tensors(value)]


def _check_scales(graph: Graph) -> None:
    for node in graph.calls(*SCALE_ARGUMENT):
        scale = node.args[argument_names(node).index(SCALE_ARGUMENT[op_name(node)])]
        if not isinstance(scale, fx.Node) or scale.op != "get_attr":
            continue
        value = graph.weight(scale)
        if not bool((torch.isfinite(value) & (value > 0)).all()):
            what = f"scale '{scale.target}' holds {float(value.min()):g}"
            raise VerifyError(describe(node), what, "scales are finite and positive", "calibrate again")
