"""Pairs of products between which a positive factor per channel can move without changing what the model computes."""

from dataclasses import dataclass

from torch import fx

from ....ir.graph import Graph
from ....ir.ops import arguments, is_op, only_user, op_name
from ....ir.shapes import shape
from ...base import Skip
from ..rules import CLIPS, WEIGHT_AXIS
from .reference import channel_dim, why_not_own

# f(a x) = a f(x) for a > 0, element by element, whatever the channel.
ELEMENTWISE = {"relu", "leaky_relu", "prelu", "dropout", "feature_dropout", "contiguous", "clone", "alias"}
# The same over windows of one channel: of the dims behind the channels only.
SPATIAL = {
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
}  # fmt: skip
RESHAPES = {"flatten", "view", "reshape"}


@dataclass(frozen=True)
class Pair:
    """Two products. Each channel that the first puts out, divided by a factor, is multiplied by it in the second.

    clips    calls between them whose bounds have to be divided as well, because they are not zero or infinite; each
             with the dim of its channels
    plain    only elementwise calls stand between them
    repeat   inputs of the second for each output of the first, side by side: more than 1 behind a flatten
    """

    first: fx.Node
    second: fx.Node
    clips: tuple[tuple[fx.Node, int], ...]
    plain: bool
    repeat: int


def find_pairs(graph: Graph) -> tuple[list[Pair], list[Skip]]:
    """All pairs in the order of the graph; and the products behind which there is none, with the reason."""
    pairs, skipped = [], []
    for product in graph.calls(*WEIGHT_AXIS):
        found = why_not_own(graph, product) or _follow(graph, product)
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            skipped.append(Skip.at(product, found))
    return pairs, skipped


def _follow(graph: Graph, first: fx.Node) -> Pair | str:
    """From a product to the one that alone reads it, through calls that a factor per channel passes."""
    value, clips, plain, channel = first, [], True, _channel(first)
    while (reader := only_user(value)) is not None:
        if is_op(reader, *WEIGHT_AXIS) and arguments(reader).input is value:
            if why := why_not_own(graph, reader):
                return f"{why} ('{reader.name}')"
            if _channel_read(reader) != channel:
                return f"'{reader.name}' reads another dim than its channels"
            return Pair(first, reader, tuple(clips), plain, _inputs(reader) // _extent(first))
        if why := _why_stops(reader, value, channel):
            return why
        if is_op(reader, *CLIPS) and not is_homogeneous(reader):
            clips.append((reader, channel))
        plain = plain and is_op(reader, *ELEMENTWISE)
        channel = len(shape(reader)) - 1 if len(shape(reader)) == 2 else channel
        value = reader
    return f"'{value.name}' has {'several readers' if value.users else 'no reader'}"


def is_homogeneous(clip: fx.Node) -> bool:
    """True for a clip whose bounds are zero or absent."""
    return all(bound is None or bound == 0 for bound in bounds(clip))


def bounds(clip: fx.Node) -> tuple:
    """(lower, upper) of a clip: numbers, None, or nodes."""
    name, call = op_name(clip), arguments(clip)
    if name == "relu":
        return 0, None
    if name == "relu6":
        return 0, 6
    if name == "hardtanh":
        return call.min_val, call.max_val
    return getattr(call, "min", None), getattr(call, "max", None)


def _why_stops(call: fx.Node, value: fx.Node, channel: int) -> str | None:
    """Why a factor per channel does not pass a call, None if it does."""
    if call.op == "output":
        return "it is an output of the model"
    name, before = op_name(call), shape(value)
    if name in ELEMENTWISE:
        return None
    if name in CLIPS:
        return "its bounds are computed" if any(isinstance(bound, fx.Node) for bound in bounds(call)) else None
    behind = channel == 1 and len(before) > 2  # channels first
    if name in SPATIAL and behind and len(before) == len(shape(call)):
        return None
    if name in ("pad", "constant_pad_nd") and behind:
        fills = arguments(call).value not in (None, 0) or getattr(arguments(call), "mode", "constant") != "constant"
        touches = len(arguments(call).pad) > 2 * (len(before) - 2)
        return f"'{call.name}' pads its channels or with other than zero" if fills or touches else None
    if name == "mean" and behind:
        dims = {dim % len(before) for dim in arguments(call).dim or range(len(before))}
        return f"'{call.name}' is over the channels" if dims & {0, 1} else None
    if name in RESHAPES and behind and _flattens(call, before):
        return None
    return f"'{call.name}' ({name}) does not pass a factor per channel"


def _flattens(call: fx.Node, before: list[int]) -> bool:
    """[b, channels, ...] -> [b, channels * ...]"""
    after = shape(call)
    total = 1
    for extent in before[1:]:
        total *= extent
    return len(after) == 2 and after == [before[0], total]


def _channel(product: fx.Node) -> int:
    return channel_dim(product, len(shape(product)))


def _channel_read(product: fx.Node) -> int:
    return channel_dim(product, len(shape(arguments(product).input)))


def _extent(product: fx.Node) -> int:
    return shape(product)[_channel(product)]


def _inputs(product: fx.Node) -> int:
    return shape(arguments(product).input)[_channel_read(product)]
