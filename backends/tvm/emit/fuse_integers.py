"""Which integer calls become one kernel: sums in int32, what makes integers or floats of them, and an add behind it."""

from dataclasses import dataclass, replace

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import arguments, is_op, only_user, op_name
from ..kernels import Window
from .pair import Pair

SUMS = (
    "conv_int32", "conv_transpose_int32", "linear_int32", "matmul_int32", "sum_int32", "sum_pool2d_int32", "mul_int32",
)  # fmt: skip
_FINISHES = ("requantize", "dequantize_int32")


@dataclass(frozen=True)
class IntegerSum:
    """A call that sums in int32 and the call that alone reads the sums; `add`: the add_int8 that alone reads that.

    result  the node whose value the kernel yields; residual: what `add` adds
    """

    node: fx.Node
    finish: fx.Node
    result: fx.Node
    add: fx.Node | None = None
    residual: fx.Node | None = None

    @property
    def source(self) -> fx.Node:
        """What the kernel reads: the call's input, or what a padding with zero points before it reads."""
        pad = zero_pad(self.node)
        return arguments(pad).self if pad is not None else self.node.all_input_nodes[0]

    def nodes(self) -> list[fx.Node]:
        pad = zero_pad(self.node)
        return [n for n in (pad, self.node, self.finish, self.add) if n is not None]


class IntegerPair(Pair[IntegerSum]):
    """A pair in integers."""

    def nodes(self) -> list[fx.Node]:
        return [*self.expand.nodes(), *self.depthwise.nodes()]


def integer_kernels(graph: Graph) -> dict[fx.Node, IntegerSum | IntegerPair]:
    """Result node -> what computes it."""
    sums = _sums(graph)
    pairs = [pair for kernel in sums.values() if (pair := _pair(kernel, sums)) is not None]
    rest = {result: kernel for result, kernel in sums.items() if all(kernel is not pair.expand for pair in pairs)}
    return {**rest, **{pair.result: pair for pair in pairs}}


def is_depthwise(node: fx.Node) -> bool:
    """A conv_int32 in two dims with one input channel for each output channel."""
    if not is_op(node, "conv_int32"):
        return False
    call, extents = arguments(node), arguments(node).weight.meta["val"].shape
    return len(extents) == 4 and extents[1] == 1 and call.groups == extents[0] > 1


def is_pointwise(node: fx.Node) -> bool:
    """A 1x1 conv_int32 over all channels, without stride or padding."""
    if not is_op(node, "conv_int32") or arguments(node).weight.meta["val"].ndim != 4:
        return False
    return window(node) == Window((1, 1)) and arguments(node).groups == 1


def _pair(depthwise: IntegerSum, sums: dict[fx.Node, IntegerSum]) -> IntegerPair | None:
    expand = sums.get(depthwise.source) if is_depthwise(depthwise.node) else None
    if expand is None or not is_pointwise(expand.node) or expand.add is not None or depthwise.add is not None:
        return None
    both_stored = is_op(expand.finish, "requantize") and is_op(depthwise.finish, "requantize")
    alone = only_user(expand.result) in (depthwise.node, zero_pad(depthwise.node))
    return IntegerPair(expand, depthwise) if both_stored and alone else None


def _sums(graph: Graph) -> dict[fx.Node, IntegerSum]:
    found: dict[fx.Node, IntegerSum] = {}
    claimed: set[fx.Node] = set()
    for node in graph.calls(*SUMS):
        finish = only_user(node)
        if finish is not None and is_op(finish, *_FINISHES) and _is_finished_here(node, finish):
            kernel = _with_add(IntegerSum(node, finish, finish), claimed)
            claimed.update(kernel.nodes())
            found[kernel.result] = kernel
    return found


def zero_pad(node: fx.Node) -> fx.Node | None:
    """The call that pads a conv's input with its zero point in height and width, for this conv alone."""
    if not is_op(node, "conv_int32"):
        return None
    conv = arguments(node)
    pad = conv.input
    if not is_op(pad, "pad", "constant_pad_nd") or only_user(pad) is not node:
        return None
    call = arguments(pad)
    fits = getattr(call, "mode", "constant") == "constant" and call.value == conv.zero_point
    return pad if fits and len(call.pad) == 4 and all(isinstance(p, int) and p >= 0 for p in call.pad) else None


def window(node: fx.Node) -> Window:
    """Kernel, stride, padding (top, bottom, left, right) and dilation of a conv_int32 in two dims."""
    call = arguments(node)
    pad = zero_pad(node)
    left, right, top, bottom = arguments(pad).pad if pad is not None else (0, 0, 0, 0)
    (tall, wide), (vertical, horizontal) = map(int, call.weight.meta["val"].shape[2:]), call.padding
    return Window(
        kernel=(tall, wide),
        stride=(call.stride[0], call.stride[1]),
        padding=(vertical + top, vertical + bottom, horizontal + left, horizontal + right),
        dilation=(call.dilation[0], call.dilation[1]),
    )


def _is_finished_here(node: fx.Node, finish: fx.Node) -> bool:
    """Sums that are no products have kernels that store integers only, with one factor for all."""
    return op_name(node) not in ("sum_int32", "sum_pool2d_int32", "mul_int32") or is_op(finish, "requantize")


def _with_add(kernel: IntegerSum, claimed: set[fx.Node]) -> IntegerSum:
    add = only_user(kernel.finish)
    if add is None or add in claimed or not is_op(add, "add_int8") or not is_op(kernel.node, "conv_int32"):
        return kernel
    left, right = arguments(add).left, arguments(add).right
    other = right if left is kernel.finish else left
    same = [str(s) for s in other.meta["val"].shape] == [str(s) for s in kernel.finish.meta["val"].shape]
    bytes_alike = other.op != "get_attr" and other.meta["val"].dtype in (torch.int8, torch.uint8)
    if other is kernel.finish or not same or not bytes_alike:
        return kernel
    return replace(kernel, result=add, add=add, residual=other)
