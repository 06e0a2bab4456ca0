"""The only way to edit a graph: insert, replace, erase, set a weight or an argument, and finish.

Each call keeps types and source locations true, so that a pass never has to.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from . import shapes
from .capture import has_effect
from .errors import PassError
from .graph import Graph, attribute, named_tensors, set_attribute, set_call_argument
from .ops import describe


def insert(
    graph: Graph,
    target: Callable,
    args: tuple,
    kwargs: dict[str, Any] | None = None,
    *,
    before: fx.Node | None = None,
    after: fx.Node | None = None,
    like: fx.Node | None = None,
    name: str | None = None,
) -> fx.Node:
    """Add a call before or after a node. Its type is inferred now; its source line is that of `like`
    (or of the node it stands beside).

    Raises VerifyError where the inputs do not fit the op.
    """
    anchor = before or after
    assert anchor is not None, "insert needs 'before' or 'after'"
    structure = graph.module.graph
    with structure.inserting_before(anchor) if before else structure.inserting_after(anchor):
        node = structure.create_node("call_function", target, args, kwargs or {}, name=name or _short_name(target))
    _copy_source(like or anchor, node)
    node.meta["val"] = shapes.infer(node)
    return node


def replace(graph: Graph, old: fx.Node, new: fx.Node) -> None:
    """Let all users of `old` read `new` instead (except `new` itself), then erase `old`."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    if not old.users:
        graph.module.graph.erase_node(old)


def erase(graph: Graph, node: fx.Node) -> None:
    """Remove a node that nobody reads. Raises PassError where somebody does."""
    if node.users:
        readers = ", ".join(user.name for user in node.users)
        raise PassError(describe(node), f"it is still read by {readers}", "replace its uses before erasing it")
    graph.module.graph.erase_node(node)


def set_argument(graph: Graph, node: fx.Node, name: str, value: Any) -> None:
    """Set one argument of a call by its schema name and infer its type anew."""
    set_call_argument(node, name, value)
    node.meta["val"] = shapes.infer(node)


def set_input_type(graph: Graph, node: fx.Node, dtype: torch.dtype) -> None:
    """Let an input take tensors of another dtype. Its readers' types are inferred by `finish`."""
    value = node.meta["val"]
    with value.fake_mode:
        node.meta["val"] = torch.empty_like(value, dtype=dtype)


def set_weight(graph: Graph, name: str, tensor: torch.Tensor) -> None:
    """Give a weight new data (and shape), under this name and all names tied to it.

    A parameter stays a parameter with its `requires_grad`. Readers' types are inferred by `finish`.
    """
    set_weights(graph, {name: tensor})


def set_weights(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> None:
    """`set_weight` for many weights in one walk over the graph. Of names that are tied the last one given counts."""
    tied: dict[int, list[str]] = {}
    for name, tensor in named_tensors(graph.module).items():
        tied.setdefault(id(tensor), []).append(name)
    new = {}
    for name, tensor in tensors.items():
        new[id(graph.weight(name))] = tensor
    values: dict[str, torch.Tensor] = {}
    for key, tensor in new.items():
        old, value = graph.weight(tied[key][0]), tensor.detach()
        if isinstance(old, torch.nn.Parameter):
            value = torch.nn.Parameter(value, old.requires_grad)
        values |= dict.fromkeys(tied[key], value)
    for name, value in values.items():
        set_attribute(graph.module, name, value)
    for node in graph.module.graph.find_nodes(op="get_attr"):
        if node.target in values:
            node.meta["val"] = shapes.fake_like(node, values[node.target])


def add_weight(graph: Graph, name: str, tensor: torch.Tensor, *, before: fx.Node) -> fx.Node:
    """Add a weight and a node that reads it. A plain tensor becomes a buffer, a Parameter a parameter.

    A name that is taken by another weight gets a number: `conv.bias_1`.
    """
    free, number = name, 0
    while _exists(graph.module, free):
        number += 1
        free = f"{name}_{number}"
    set_attribute(graph.module, free, tensor)
    with graph.module.graph.inserting_before(before):
        node = graph.module.graph.create_node("get_attr", free)
    example = next(n for n in graph.nodes if n is not node and isinstance(n.meta.get("val"), torch.Tensor))
    node.meta["val"] = shapes.fake_like(example, tensor)
    return node


def finish(graph: Graph) -> None:
    """After edits: dead code goes, weights that lost their last reader go, types are inferred anew, code is made."""
    tidy(graph)
    shapes.propagate(graph.module)


def tidy(graph: Graph) -> None:
    """`finish` for an edit that knows the types of all its nodes: nothing is inferred."""
    structure = graph.module.graph
    structure.eliminate_dead_code(is_impure_node=has_effect)  # which checks the structure first
    used = {id(tensor) for tensor in graph.weights.values()}
    for module in list(graph.module.modules()):
        for table in (module._parameters, module._buffers):
            for name in [n for n, t in table.items() if t is not None and id(t) not in used]:
                del table[name]
                module._non_persistent_buffers_set.discard(name)
    graph.module.recompile()


def _short_name(target: Any) -> str:
    return getattr(getattr(target, "overloadpacket", target), "__name__", "call")


def _exists(module: torch.nn.Module, name: str) -> bool:
    try:
        attribute(module, name)
    except AttributeError:
        return False
    return True


def _copy_source(like: fx.Node, node: fx.Node) -> None:
    for key in ("source", "stack_trace", "nn_module_stack"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
