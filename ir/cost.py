"""What a graph costs: parameters, multiply-accumulates, bytes, peak activation memory, in total and per node."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx

from .graph import Graph
from .integers.dynamic import LINEAR_DYNAMIC, LSTM_DYNAMIC
from .integers.packed_weights import WEIGHT_ONLY
from .liveness import Liveness
from .ops import CONVS, TRANSPOSED_CONVS, arguments, op_name, tensors
from .shapes import concrete


@dataclass(frozen=True)
class NodeCost:
    """One node: multiply-accumulates, bytes of the weights it reads, bytes of what it yields."""

    name: str
    op: str
    macs: int
    weight_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class Cost:
    """A graph at one batch size.

    params      parameters, and the integer weights and biases that stand for them; tied ones once
    macs        multiply-accumulates of products (conv, linear, matmul, attention); elementwise work is not counted
    bytes       of all weights and buffers, tied ones once
    peak_bytes  of the activations alive at the worst moment, run in graph order, views sharing memory
    """

    params: int
    macs: int
    bytes: int
    peak_bytes: int
    by_node: dict[str, NodeCost] = field(repr=False)
    by_op: dict[str, int] = field(repr=False)


def cost(graph: Graph, batch: int = 1) -> Cost:
    """Count everything for one batch size. Symbolic extents stand for `batch`."""
    unique = {id(t): t for t in graph.weights.values()}.values()
    by_node = {n.name: _node_cost(graph, n, batch) for n in graph.nodes if n.op == "call_function"}
    integers = _integer_weights(graph)
    by_op: dict[str, int] = {}
    for entry in by_node.values():
        by_op[entry.op] = by_op.get(entry.op, 0) + entry.macs
    return Cost(
        params=sum(
            integers.get(id(t), t.numel()) for t in unique if isinstance(t, torch.nn.Parameter) or id(t) in integers
        ),
        macs=sum(entry.macs for entry in by_node.values()),
        bytes=sum(t.numel() * t.element_size() for t in unique),
        peak_bytes=_peak_bytes(graph, by_node, batch),
        by_node=by_node,
        by_op={op: macs for op, macs in by_op.items() if macs},
    )


def _integer_weights(graph: Graph) -> dict[int, int]:
    """The weights and biases of integer products and packed weights, which are buffers: they have no gradient.

    id of the tensor -> how many numbers it holds; two of int4 share a byte.
    """
    found: dict[int, int] = {}
    for node in graph.calls(*INTEGER_PRODUCTS, WEIGHT_ONLY):
        call = arguments(node)
        for read in (*(getattr(call, name, None) for name in ("weight", "bias")), *getattr(call, "weights", ())):
            if isinstance(read, fx.Node) and read.op == "get_attr":
                tensor = graph.weight(read)
                is_packed = op_name(node) == WEIGHT_ONLY and read is call.weight
                found[id(tensor)] = len(tensor) * _extents(call.input, 1)[-1] if is_packed else tensor.numel()
    return found


def macs(node: fx.Node, batch: int = 1) -> int:
    """Multiply-accumulates of one call; 0 for ops that are no products."""
    rule = _MACS.get(op_name(node))
    return rule(node, batch) if rule else 0


def _extents(node: fx.Node, batch: int) -> list[int]:
    return [concrete(s, batch) for s in node.meta["val"].shape]


def _conv_macs(node: fx.Node, batch: int) -> int:
    weight = _extents(arguments(node).weight, batch)
    return math.prod(_extents(node, batch)) * math.prod(weight[1:])


def _transposed_conv_macs(node: fx.Node, batch: int) -> int:
    call = arguments(node)  # every input element meets every output channel of its group and every tap
    return math.prod(_extents(call.input, batch)) * math.prod(_extents(call.weight, batch)[1:])


def _linear_macs(node: fx.Node, batch: int) -> int:
    return math.prod(_extents(node, batch)) * _extents(arguments(node).weight, batch)[-1]


def _packed_linear_macs(node: fx.Node, batch: int) -> int:
    return math.prod(_extents(node, batch)) * _extents(arguments(node).input, batch)[-1]


def _matmul_macs(node: fx.Node, batch: int) -> int:
    left = next(a for a in node.args[-2:] if isinstance(a, fx.Node))
    return math.prod(_extents(node, batch)) * _extents(left, batch)[-1]


def _integer_matmul_macs(node: fx.Node, batch: int) -> int:
    return math.prod(_extents(node, batch)) * _extents(arguments(node).left, batch)[-1]


def _attention_macs(node: fx.Node, batch: int) -> int:
    call = arguments(node)
    query, key, value = (_extents(n, batch) for n in (call.query, call.key, call.value))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent_macs(node: fx.Node, batch: int) -> int:
    call = arguments(node)
    steps = math.prod(_extents(call.input, batch)[:-1])
    return steps * sum(math.prod(_extents(w, batch)) for w in call.params if len(w.meta["val"].shape) == 2)


def _dynamic_lstm_macs(node: fx.Node, batch: int) -> int:
    call = arguments(node)
    return math.prod(_extents(call.input, batch)[:-1]) * sum(math.prod(_extents(w, batch)) for w in call.weights)


def _einsum_macs(node: fx.Node, batch: int) -> int:
    """Every combination of indices is one product; a single operand is only summed or rearranged."""
    call = arguments(node)
    terms = call.equation.replace(" ", "").partition("->")[0].split(",")
    extents: dict[str, int] = {}
    for term, operand in zip(terms, call.tensors, strict=True):
        shape = _extents(operand, batch)
        hidden = len(shape) - len(term.replace("...", ""))
        letters = [*term] if "..." not in term else _with_ellipsis(term, hidden)
        for letter, extent in zip(letters, shape, strict=True):
            extents[letter] = max(extent, extents.get(letter, 1))
    return math.prod(extents.values()) if len(terms) > 1 else 0


def _with_ellipsis(term: str, hidden: int) -> list[str]:
    """The letters of a term; dims behind `...` are numbered from the right, as they broadcast."""
    before, _, after = term.partition("...")
    return [*before, *(f".{i}" for i in range(hidden, 0, -1)), *after]


# Products of integers (planish.ir.integers), each with the rule of its float form.
_INTEGER_MACS: dict[str, Callable[[fx.Node, int], int]] = {
    "conv_int32": _conv_macs,
    "conv_transpose_int32": _transposed_conv_macs,
    "linear_int32": _linear_macs,
    "matmul_int32": _integer_matmul_macs,
    LINEAR_DYNAMIC: _linear_macs,
    LSTM_DYNAMIC: _dynamic_lstm_macs,
}
INTEGER_PRODUCTS = tuple(_INTEGER_MACS)

_MACS: dict[str, Callable[[fx.Node, int], int]] = {
    **_INTEGER_MACS,
    **dict.fromkeys(CONVS, _conv_macs),
    **dict.fromkeys(TRANSPOSED_CONVS, _transposed_conv_macs),
    "linear": _linear_macs,
    WEIGHT_ONLY: _packed_linear_macs,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "addmm", "baddbmm"), _matmul_macs),
    "einsum": _einsum_macs,
    "scaled_dot_product_attention": _attention_macs,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent_macs),
}


def _node_cost(graph: Graph, node: fx.Node, batch: int) -> NodeCost:
    weights = {id(t): t for n in node.all_input_nodes if n.op == "get_attr" for t in [graph.weight(n)]}
    weight_bytes = sum(t.numel() * t.element_size() for t in weights.values() if isinstance(t, torch.Tensor))
    return NodeCost(node.name, op_name(node), macs(node, batch), weight_bytes, value_bytes(node, batch))


def value_bytes(node: fx.Node, batch: int) -> int:
    """Bytes of all tensors that a node yields."""
    return sum(math.prod(concrete(s, batch) for s in t.shape) * t.dtype.itemsize for t in tensors(node.meta.get("val")))


def _peak_bytes(graph: Graph, by_node: dict[str, NodeCost], batch: int) -> int:
    """The most that is in use at once: a value dies after the last reader of it or of a view of it."""
    live = Liveness.of(graph)
    sizes = [by_node[n.name].output_bytes if n.name in by_node else value_bytes(n, batch) for n in live.owners]
    return int(live.profile(np.array(sizes, np.int64)).max(initial=0))
