"""Reading one fx node: which op it is, its arguments by name, and the user's source line it came from."""

import operator
import os
import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

TORCH_FOLDER = os.path.dirname(torch.__file__) + os.sep
# The argument without which an op that could draw random numbers draws none.
_RANDOM_ONLY_WITH = {
    "scaled_dot_product_attention": "dropout_p",
    "dropout": "train",
    "feature_dropout": "train",
    "alpha_dropout": "train",
    "feature_alpha_dropout": "train",
    "rrelu": "training",
}
CONVS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED_CONVS = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
# The calls that hold most of a model's weights.
WEIGHTED_PRODUCTS = (*CONVS, *TRANSPOSED_CONVS, "linear")

_SOURCE_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def op_name(node: fx.Node) -> str:
    """The name of a call without namespace, overload and in-place mark: `conv2d`, `relu`, `add`, `getitem`."""
    if node.op != "call_function":
        return node.op
    packet = getattr(node.target, "overloadpacket", node.target)
    name = getattr(packet, "__name__", str(packet))
    return name if name.endswith("__") else name.removesuffix("_")


def qualified_name(target: Any) -> str:
    """`aten.conv2d.default` for an ATen overload, `operator.mul` for Python arithmetic."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "").removeprefix("_")
    return f"{module}.{getattr(target, '__name__', target)}"


def has_schema(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def argument_names(node: fx.Node) -> list[str]:
    """The argument names of an ATen call in schema order."""
    assert isinstance(node.target, torch._ops.OpOverload)
    return [argument.name for argument in node.target._schema.arguments]


def arguments(node: fx.Node) -> SimpleNamespace:
    """All arguments of an ATen call by schema name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    values = {
        argument.name: argument.default_value if argument.has_default_value() else None
        for argument in node.target._schema.arguments
    }
    values.update(zip(values, node.args, strict=False))
    values.update(node.kwargs)
    return SimpleNamespace(**values)


def location(node: fx.Node) -> str:
    """`model.py:41`, the user's own line that made this node, or the node's name where no line is known."""
    if line := node.meta.get("source"):
        return line
    lines = list(_SOURCE_LINE.finditer(node.meta.get("stack_trace") or ""))
    lines = [line for line in lines if not line["file"].startswith(TORCH_FOLDER)]
    if not lines:
        return node.name
    return f"{os.path.basename(lines[-1]['file'])}:{lines[-1]['line']}"


def describe(node: fx.Node) -> str:
    """`'aten.erf' (model.py:41)`: how messages name a node."""
    what = qualified_name(node.target) if node.op == "call_function" else str(node.target)
    return f"'{what}' ({location(node)})"


def is_view(node: fx.Node) -> bool:
    """True for a call whose value may share memory with its first argument, and that writes nothing."""
    schema = getattr(node.target, "_schema", None)
    returns = schema.returns if schema is not None and not schema.is_mutable else ()
    return is_getitem(node) or any(r.alias_info is not None for r in returns)


def writes(node: fx.Node) -> bool:
    """True for a call that changes one of its arguments in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def is_random(node: fx.Node) -> bool:
    """True for a call that draws random numbers as it is called: dropout in eval form does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    switch = _RANDOM_ONLY_WITH.get(op_name(node))
    return switch is None or bool(getattr(arguments(node), switch))


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a node's recorded value: one, several, or none."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors(v)]
    return []


def is_getitem(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem


def is_op(value: Any, *names: str) -> bool:
    """True for a node that calls one of the named ops."""
    return isinstance(value, fx.Node) and value.op == "call_function" and op_name(value) in names


def only_user(node: fx.Node) -> fx.Node | None:
    """The single user of a node, None if it has several or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None
