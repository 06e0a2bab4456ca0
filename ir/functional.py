"""From what torch.export leaves to plain calls: regions inlined, assertions dropped, in-place ops functional."""

import operator
from typing import Any

import torch
from torch import fx

from .ops import is_view, op_name

_ASSERTIONS = {
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}


def remove_assertions(graph: fx.Graph) -> None:
    """Drop export's run-time assertions: inputs are checked at the call instead."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and op_name(node) in _ASSERTIONS:
            graph.erase_node(node)


def inline_regions(module: fx.GraphModule) -> None:
    """Inline `wrap_with_*` regions (no_grad, autocast): their body is an ordinary part of the graph."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or "wrap_with" not in str(node.target):
            continue
        position, body = next((i, a) for i, a in enumerate(node.args) if _is_region(module, a))
        region: fx.GraphModule = getattr(module, body.target)
        inline_regions(region)
        inputs = dict(zip(region.graph.find_nodes(op="placeholder"), node.args[position + 1 :], strict=True))
        _lift_attributes(module, region, body.target)
        with module.graph.inserting_before(node):
            results = module.graph.graph_copy(region.graph, inputs)
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        if not body.users:
            module.graph.erase_node(body)


def replace_in_place_ops(graph: fx.Graph) -> None:
    """`relu_(x)` becomes `relu(x)` and later readers of x read the result.

    Left as they are: ops that write into an input, a weight, or memory that is read later through another view
    (a slice that is assigned to), where the order of writes carries meaning.
    """
    for node in list(graph.nodes):
        functional = _functional_form(node)
        if functional is None:
            continue
        written = node.args[0]
        if not isinstance(written, fx.Node) or _is_seen_elsewhere(written, node):
            continue
        node.target = functional
        written.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: user is not node and node < user)


def _functional_form(node: fx.Node) -> torch._ops.OpOverload | None:
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.name.endswith("_"):
        return None
    packet = getattr(torch.ops.aten, op_name(node), None)
    overload = getattr(packet, node.target._overloadname, None)
    return overload if overload is not None and not overload._schema.is_mutable else None


def _is_seen_elsewhere(value: fx.Node, write: fx.Node) -> bool:
    """True if a write into `value` reaches the caller, the model, or a reader of another view of the same memory."""
    root = value
    while is_view(root):
        root = root.all_input_nodes[0]
    if root.op != "call_function":
        return True
    family = [root]
    for member in family:  # grows while it is walked
        family += [user for user in member.users if is_view(user) and user not in family]
    earlier = [member for member in family if member is not value and member < write]
    return any(user > write for member in earlier for user in member.users)


def _is_region(module: fx.GraphModule, value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(getattr(module, str(value.target), None), fx.GraphModule)


def _lift_attributes(module: fx.GraphModule, region: fx.GraphModule, prefix: str) -> None:
    """Give the region's own constants a name in the module around it."""
    for node in region.graph.find_nodes(op="get_attr"):
        name = f"{prefix}_{node.target}".replace(".", "_")
        value: Any = region
        for part in node.target.split("."):
            value = getattr(value, part)
        if not hasattr(module, name):
            setattr(module, name, value)
        node.target = name
