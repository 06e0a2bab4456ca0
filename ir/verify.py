"""What must hold of every graph. Run after each pass; a failure names the node and the user's source line."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from . import shapes
from .errors import VerifyError
from .graph import Graph, attribute, named_tensors
from .ops import argument_names, describe, has_schema, op_name, tensors

SCALE_ARGUMENT = {
    "fake_quantize_per_tensor_affine": "scale",
    "fake_quantize_per_channel_affine": "scale",
}


def verify(graph: Graph) -> None:
    """Check structure, weights, recorded types and what the graph's properties promise. Changes nothing.

    Raises VerifyError naming the node (with its source line) and the rule that it breaks.
    """
    _check_structure(graph)
    _check_weights(graph)
    _check_types(graph)
    for name in sorted(graph.properties & _PROMISES.keys()):
        _PROMISES[name](graph)


def _check_structure(graph: Graph) -> None:
    structure = graph.module.graph
    try:
        structure.lint()
    except RuntimeError as error:
        raise VerifyError("verify", f"the graph is malformed: {error}") from error
    for node in structure.nodes:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            raise VerifyError(describe(node), f"a node is a '{node.op}'", "graphs hold inputs, weights, calls, outputs")
        takes = len(argument_names(node)) if has_schema(node) else len(node.args)
        if len(node.args) > takes:
            raise VerifyError(describe(node), f"{len(node.args)} arguments", f"the op takes {takes}")


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
        if isinstance(value, torch.Tensor):
            _check_weight(node, value)
    if graph.properties:  # a graph fresh from capture keeps counters and the like, so that checkpoints load
        unread = [name for name, t in named_tensors(graph.module).items() if id(t) not in read]
        if unread:
            raise VerifyError("verify", f"weight '{unread[0]}' has no reader", "call rewrite.finish after editing")


def _check_weight(node: fx.Node, value: torch.Tensor) -> None:
    recorded = node.meta.get("val")
    if not isinstance(recorded, torch.Tensor):
        raise VerifyError(describe(node), f"weight '{node.target}' has no recorded type", "use rewrite.add_weight")
    for what, actual, known in (
        ("shape", list(value.shape), list(recorded.shape)),
        ("dtype", value.dtype, recorded.dtype),
    ):
        if actual != known:
            raise VerifyError(describe(node), f"weight '{node.target}' has {what} {actual}", f"{known} is recorded")
    if has_nan(value):
        raise VerifyError(describe(node), f"weight '{node.target}' holds NaN")


def has_nan(value: torch.Tensor) -> bool:
    return value.is_floating_point() and bool(torch.isnan(value).any())


def _check_types(graph: Graph) -> None:
    """Shapes re-run on the inputs' fake tensors must equal what is recorded, dim by dim and symbol by symbol."""
    names = shapes.symbol_names(graph.module.graph)
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            values[node] = shapes.infer(node, values)
            now, recorded = _types(values[node], names), _types(node.meta.get("val"), names)
            if now != recorded:
                raise VerifyError(describe(node), f"its type is recorded as {_show(recorded)}", f"it is {_show(now)}")
        else:
            values[node] = node.meta.get("val")


def _types(value: Any, names: dict[Any, str]) -> list[shapes.TensorSpec]:
    return [shapes.tensor_spec("", t, names) for t in tensors(value)]


def _show(specs: list[shapes.TensorSpec]) -> str:
    return ", ".join(str(spec).removeprefix(" : ") for spec in specs) or "nothing"


def _check_no_batch_norm(graph: Graph) -> None:
    for node in (n for n in graph.nodes if "batch_norm" in op_name(n)):
        raise VerifyError(describe(node), "the graph is said to have 'no-batch-norm', and this is one")


def _check_scales(graph: Graph) -> None:
    for node in graph.calls(*SCALE_ARGUMENT):
        scale = node.args[argument_names(node).index(SCALE_ARGUMENT[op_name(node)])]
        if not isinstance(scale, fx.Node) or scale.op != "get_attr":
            continue
        value = graph.weight(scale)
        if not bool((torch.isfinite(value) & (value > 0)).all()):
            what = f"scale '{scale.target}' holds {float(value.min()):g}"
            raise VerifyError(describe(node), what, "scales are finite and positive", "calibrate again")


# What a property promises, where a graph can show it.
_PROMISES: dict[str, Callable[[Graph], None]] = {
    "calibrated": _check_scales,
    "no-batch-norm": _check_no_batch_norm,
}
