"""The rules of `canonicalize`: each looks at one call and answers with a rewrite, a reason to decline, or nothing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..ir import rewrite
from ..ir.capture import has_effect
from ..ir.graph import Graph
from ..ir.ops import arguments, has_schema, is_op, only_user, op_name
from ..ir.shapes import shape

aten = torch.ops.aten

Rewrite = Callable[[], Any]
Answer = Rewrite | str | None

_CONVS = {"conv1d": aten.conv1d.default, "conv2d": aten.conv2d.default, "conv3d": aten.conv3d.default}
_COPIES = ("clone", "contiguous", "alias", "detach", "to", "_to_copy")
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "expand", "squeeze", "slice", "narrow", "view_as", "reshape_as")
_MATMULS = ("addmm", "mm", "matmul")
_PADS = ("pad", "constant_pad_nd")
_LAYOUT_READERS = ("view", "as_strided", "unflatten")
_CHANGING_LATER = ("fake_quantize", "quantize", "dequantize", "dropout", "batch_norm")
_CONSTANT_ALLOWANCE = 64 * 1024  # bytes by which a folded constant may exceed what it is computed from


def no_op(graph: Graph, node: fx.Node) -> Answer:
    """A call whose result is its input."""
    if not _is_no_op(node):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if any(has_effect(n) for n in graph.nodes if n.op == "call_function"):
        return "the graph writes in place"
    if is_op(node, "detach") and _depends_on_trained(graph, node):
        return "it keeps gradients from a trainable weight"
    if is_op(node, "clone", "contiguous") and any(is_op(user, *_LAYOUT_READERS) for user in node.users):
        return "a view needs the layout that it makes"
    if source.op != "call_function" and any(user.op == "output" for user in node.users):
        return None  # an output that is an input or a weight itself would share its memory
    return lambda: rewrite.replace(graph, node, source)


def string_padding(graph: Graph, node: fx.Node) -> Answer:
    """`padding="same"` and `"valid"` as numbers. `same` pads the rest of an odd total at the end, as PyTorch does."""
    if not is_op(node, *_CONVS) or not isinstance(arguments(node).padding, str):
        return None
    call = arguments(node)
    kernel = shape(call.weight)[2:]
    is_same = call.padding == "same"
    dilation = _per_dim(call.dilation, len(kernel))
    totals = [d * (k - 1) if is_same else 0 for d, k in zip(dilation, kernel, strict=True)]

    def apply() -> None:
        value = call.input
        if any(total % 2 for total in totals):
            rests = [amount for total in reversed(totals) for amount in (0, total % 2)]
            value = rewrite.insert(graph, aten.constant_pad_nd.default, (value, rests), before=node)
        padding = [total // 2 for total in totals]
        args = (value, call.weight, call.bias, call.stride, padding, call.dilation, call.groups)
        rewrite.replace(graph, node, rewrite.insert(graph, _CONVS[op_name(node)], args, before=node))

    return apply


def pad_conv(graph: Graph, node: fx.Node) -> Answer:
    """Zero padding in front of a conv, as the conv's own padding."""
    if not is_op(node, *_CONVS) or isinstance(arguments(node).padding, str):
        return None
    call, pad = arguments(node), arguments(node).input
    if not _is_zero_pad(pad) or only_user(pad) is not node:
        return None
    dims = len(shape(call.weight)) - 2
    amounts = _pad_amounts(pad)
    begins, ends = amounts[0::2][::-1], amounts[1::2][::-1]  # last dim first -> first dim first
    if any(begins[:-dims]) or any(ends[:-dims]) or any(amount < 0 for amount in amounts):
        return None
    begins, ends = [0] * (dims - len(begins)) + begins[-dims:], [0] * (dims - len(ends)) + ends[-dims:]
    if begins != ends:
        return f"the padding {amounts} before it is not symmetric"
    padding = [own + more for own, more in zip(_per_dim(call.padding, dims), begins, strict=True)]

    def apply() -> None:
        rewrite.set_argument(graph, node, "padding", padding)
        rewrite.set_argument(graph, node, "input", pad.args[0])

    return apply


def linear(graph: Graph, node: fx.Node) -> Answer:
    """A product with a transposed weight is a linear layer."""
    if is_op(node, "addmm"):
        call = arguments(node)
        bias, value, turned = call.self, call.mat1, call.mat2
        if call.beta != 1 or call.alpha != 1 or len(shape(bias)) != 1 or shape(bias)[0] != shape(node)[-1]:
            return None
    elif is_op(node, *_MATMULS):
        bias, (value, turned) = None, node.args[:2]
    else:
        return None
    weight = _untransposed(turned)
    if weight is None or weight.op != "get_attr":
        return None
    return lambda: rewrite.replace(
        graph, node, rewrite.insert(graph, aten.linear.default, (value, weight, bias), before=node)
    )


def constant(graph: Graph, node: fx.Node) -> Answer:
    """A value that depends on constants only, as a buffer."""
    inputs = node.all_input_nodes
    if not has_schema(node) or not isinstance(node.meta["val"], torch.Tensor) or not inputs:
        return None
    tags = node.target.tags  # type: ignore[union-attr]
    if torch.Tag.nondeterministic_seeded in tags or has_effect(node) or op_name(node).startswith(_CHANGING_LATER):
        return None
    if not all(_is_constant(graph, value) for value in inputs):
        return None
    if _untransposed(node) is not None and any(is_op(user, *_MATMULS) for user in node.users):
        return None  # `linear` takes it
    size = sum(graph.weight(n).nbytes for n in inputs)
    if torch.Size(shape(node)).numel() * node.meta["val"].dtype.itemsize > size + _CONSTANT_ALLOWANCE:
        return None

    def apply() -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: graph.weight(n).detach())
        with torch.no_grad():
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        value = value.clone(memory_format=torch.contiguous_format)
        rewrite.replace(graph, node, rewrite.add_weight(graph, node.name, value, before=node))

    return apply


RULES: dict[str, Callable[[Graph, fx.Node], Answer]] = {
    "no-op": no_op,
    "string-padding": string_padding,
    "pad-conv": pad_conv,
    "linear": linear,
    "constant": constant,
}


def _is_no_op(node: fx.Node) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node) or not has_schema(node):
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor) or _type(before) != _type(after):
        return False
    if is_op(node, *_PADS):
        return not any(_pad_amounts(node))
    if is_op(node, "permute"):
        dims = list(arguments(node).dims)
        return [d % len(dims) for d in dims] == list(range(len(dims)))
    if is_op(node, "slice"):
        return arguments(node).step == 1
    return is_op(node, *_COPIES, *_RESHAPES)


def _type(value: torch.Tensor) -> tuple:
    """dtype, device, extents and strides; symbolic ones as text, which compares without adding a guard."""
    return (value.dtype, value.device, [str(s) for s in value.shape], [str(s) for s in value.stride()])


def _depends_on_trained(graph: Graph, node: fx.Node) -> bool:
    seen, waiting = set(), [node]
    while waiting:
        value = waiting.pop()
        if value.op == "get_attr" and graph.weight(value).requires_grad:
            return True
        waiting += [n for n in value.all_input_nodes if n not in seen]
        seen.update(value.all_input_nodes)
    return False


def _is_zero_pad(node: Any) -> bool:
    if not is_op(node, *_PADS):
        return False
    call = arguments(node)
    is_static = all(isinstance(amount, int) for amount in call.pad)
    return is_static and getattr(call, "mode", "constant") == "constant" and not call.value


def _pad_amounts(pad: fx.Node) -> list[Any]:
    """[last dim's begin, its end, the dim before's begin, ...]"""
    return list(arguments(pad).pad)


def _per_dim(values: Any, dims: int) -> list[int]:
    """PyTorch lets one number stand for all dims."""
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    return values * dims if len(values) == 1 else values


def _untransposed(node: Any) -> fx.Node | None:
    """w of t(w), w.T, transpose(w, 0, 1) or permute(w, [1, 0])."""
    if not is_op(node, "t", "numpy_T", "transpose", "permute") or len(shape(node)) != 2:
        return None
    if is_op(node, "transpose") and arguments(node).dim0 % 2 == arguments(node).dim1 % 2:
        return None
    if is_op(node, "permute") and [d % 2 for d in arguments(node).dims] != [1, 0]:
        return None
    return node.args[0]


def _is_constant(graph: Graph, node: fx.Node) -> bool:
    """A buffer or a frozen parameter, unless a batch norm updates it or a quantizer's calibration sets it."""
    if node.op != "get_attr" or not isinstance(graph.weight(node), torch.Tensor) or graph.weight(node).requires_grad:
        return False
    readers = graph.weight_readers(str(node.target))
    return not any(op_name(reader).startswith(_CHANGING_LATER) and node in reader.all_input_nodes for reader in readers)
