"""Convolutions in 1, 2 and 3 dims: plain, grouped, depthwise with any multiplier, transposed, grouped transposed."""

from torch import fx

from .....ir.ops import CONVS, TRANSPOSED_CONVS
from ..constraints import Constraints, extents
from ..relation import Dim, Dims
from .table import Call, refit, rule


@rule(*CONVS)
def convolution(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """`weight[out, in / groups, ...]`: both channel dims hold the groups as their leading factor."""
    x, weight = index[call.input], index[call.weight]
    channel = len(x) - len(weight) + 1
    sizes = {"group": call.groups, "in": len(weight[1]), "out": len(weight[0]) // call.groups}
    views = ((x[channel], ("group", "in")), (weight[0], ("group", "out")), (weight[1], ("in",)))
    index.relate(node, sizes, *views, equal_counts=("in", "out"), shared=(call.weight, "in"))
    return _finish(index, node, call, weight[0])


@rule(*TRANSPOSED_CONVS)
def transposed_convolution(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """`weight[in, out / groups, ...]`."""
    x, weight = index[call.input], index[call.weight]
    channel = len(x) - len(weight) + 1
    sizes = {"group": call.groups, "in": len(weight[0]) // call.groups, "out": len(weight[1])}
    (out,) = index.new([call.groups * len(weight[1])]) if call.groups > 1 else [weight[1]]
    inputs = ((x[channel], ("group", "in")), (weight[0], ("group", "in")))
    outputs = ((out, ("group", "out")), (weight[1], ("out",)))
    index.relate(node, sizes, *inputs, *outputs, equal_counts=("in", "out"), shared=(call.weight, "out"))
    return _finish(index, node, call, out)


def _finish(index: Constraints, node: fx.Node, call: Call, out: Dim) -> Dims:
    """What both kinds share: spatial dims stay, the bias follows the output, the input channels are contracted."""
    x, weight = index[call.input], index[call.weight]
    channel = len(x) - len(weight) + 1
    spatial = [*x[channel + 1 :], *weight[2:]]
    if call.bias is not None:
        index.tie(out, index[call.bias][0])
    index.freeze(spatial, "they are spatial positions")
    result = [*x[:channel], out, *index.new_frozen(extents(node)[0][channel + 1 :], "they are spatial positions")]
    index.contract(node, call.input, channel)
    index.multiply(node, [*(x if "transpose" in str(node.target) else result), *weight[1:]])
    index.produce(call.weight, out)
    return result


@refit(*CONVS, *TRANSPOSED_CONVS)
def groups(cut, node: fx.Node, call: Call) -> None:
    """Whole groups may be gone."""
    if call.groups > 1:
        x = cut.dims(call.input)
        channel = len(x) - len(cut.dims(call.weight)) + 1
        cut.set(node, "groups", cut.blocks(x[channel], call.groups))
