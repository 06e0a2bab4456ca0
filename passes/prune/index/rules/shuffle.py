"""Shuffles: channels that trade places with each other or with spatial positions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from .....ir.graph import Graph
from .....ir.ops import arguments, is_op, only_user, op_name
from .....ir.shapes import shape
from ..constraints import Constraints, extents
from ..relation import Dims
from .table import Call, refit, replace_dim, rule

RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten")
TRANSPOSES = ("permute", "transpose", "swapaxes", "swapdims")
COPIES = ("contiguous", "clone")


@rule("pixel_shuffle", "pixel_unshuffle", "im2col", "col2im")
def move_to_space(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """A channel has as many sub-channels as a window has positions, and goes with all of them."""
    x, (result,) = index[call.self], extents(node)
    channel = len(x) - (2 if op_name(node) == "col2im" else 3)
    few, many = sorted((len(x[channel]), result[channel]))
    sizes = {"channel": few, "window": many // few}
    forms = {few: ("channel",), many: ("channel", "window")}
    (channels,) = index.renumber(
        node, sizes, [(x[channel], forms[len(x[channel])])], [forms[result[channel]]], dead=("window",)
    )
    why = "they are spatial positions"
    index.freeze(x[channel + 1 :], why)
    return [*x[:channel], channels, *index.new_frozen(result[channel + 1 :], why)]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(index: Constraints, node: fx.Node, call: Call) -> Dims:
    x = index[call.self]
    return replace_dim(x, 1, x[1][_shuffled(len(x[1]), call.groups)])


@refit("channel_shuffle", "native_channel_shuffle")
def shuffle_by_index(cut, node: fx.Node, call: Call) -> None:
    dim = cut.dims(call.self)[1]
    if cut.is_cut(dim):
        cut.select(node, call.self, 1, _shuffled(len(dim), call.groups))


def _shuffled(extent: int, groups: int) -> np.ndarray:
    return np.arange(extent).reshape(groups, -1).T.ravel()


@dataclass(frozen=True)
class Shuffle:
    """A permutation of one dim that is written as reshape, transpose, reshape: `last` is `source` at `positions`.

    As three calls the digits of the middle shape would tie channels together, half of all channels of a ShuffleNet.
    """

    source: fx.Node
    inner: tuple[fx.Node, ...]
    last: fx.Node
    dim: int
    positions: np.ndarray


def find_shuffles(graph: Graph) -> Iterator[Shuffle]:
    """Every reshape that splits one dim, transposes the parts and merges them again, with no other reader between."""
    for first in graph.calls(*RESHAPES):
        chain = [first]
        while (after := only_user(chain[-1])) is not None and is_op(after, *TRANSPOSES, *COPIES):
            chain.append(after)
        if after is not None and is_op(after, *RESHAPES) and any(is_op(n, *TRANSPOSES) for n in chain):
            found = _permutation(chain, after)
            if found is not None:
                yield found


def _permutation(chain: list[fx.Node], last: fx.Node) -> Shuffle | None:
    source = chain[0].all_input_nodes[0]
    before, split = shape(source), shape(chain[0])
    if shape(last) != before or len(split) <= len(before):
        return None
    at = next((i for i, (a, b) in enumerate(zip(before, split, strict=False)) if a != b), len(before) - 1)
    parts = len(split) - len(before) + 1
    if split[at + parts :] != before[at + 1 :]:
        return None
    order = list(range(len(split)))
    for node in chain[1:]:
        order = _transposed(order, node)
    inside = order[at : at + parts]
    if sorted(inside) != list(range(at, at + parts)) or order[:at] + order[at + parts :] != [
        i for i in range(len(split)) if not at <= i < at + parts
    ]:
        return None
    digits = np.arange(before[at]).reshape(split[at : at + parts])
    return Shuffle(source, tuple(chain), last, at, digits.transpose([i - at for i in inside]).ravel())


def _transposed(order: list[int], node: fx.Node) -> list[int]:
    """The order of dims after one more transpose or copy."""
    call = arguments(node)
    if is_op(node, "permute"):
        return [order[d] for d in call.dims]
    if is_op(node, *COPIES):
        return order
    result = list(order)
    first, second = node.args[1], node.args[2]
    result[first], result[second] = result[second], result[first]  # type: ignore[index]
    return result
