"""Normalisations and other ops with one parameter per channel."""

from torch import fx

from ..constraints import Constraints
from ..relation import Dims
from .table import Call, refit, rule


@rule("batch_norm", "instance_norm", "prelu")
def per_channel(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Each channel (dim 1) is treated alone; parameters and running statistics follow it."""
    x, *parameters = (index[source] for source in index.tensor_inputs(node))
    channels = x[1] if len(x) > 1 else x[0]
    for (parameter,) in parameters:
        if len(parameter) == len(channels):
            index.tie(channels, parameter)
    return x


@rule("layer_norm", "rms_norm")
def over_last_dims(index: Constraints, node: fx.Node, call: Call) -> Dims:
    x, *parameters = (index[source] for source in index.tensor_inputs(node))
    index.mix(node, x[-len(call.normalized_shape) :])
    for parameter in parameters:
        index.align(x, parameter)
    return x


@rule("_weight_norm")
def weight_norm(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """`v * g / |v|`, the norm over all dims but one: without an index it is that of the survivors."""
    direction, length = index[call.v], index[call.g]
    at = call.dim % len(direction)
    index.tie(direction[at], length[at])
    index.mix(node, [dim for d, dim in enumerate(direction) if d != at])
    return direction


@rule("group_norm")
def over_groups(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Channels are groups x members: whole groups can go, or equally many members of every group."""
    x, *parameters = (index[source] for source in index.tensor_inputs(node))
    index.mix(node, [x[1]])
    sizes = {"group": call.num_groups, "member": len(x[1]) // call.num_groups}
    views = [(dim, ("group", "member")) for dim in (x[1], *(p for (p,) in parameters))]
    index.relate(node, sizes, *views, equal_counts=("member",))
    return x


@refit("layer_norm", "rms_norm")
def normalized_shape(cut, node: fx.Node, call: Call) -> None:
    cut.resize(node, "normalized_shape", cut.dims(call.input)[-len(call.normalized_shape) :])


@refit("group_norm")
def num_groups(cut, node: fx.Node, call: Call) -> None:
    cut.set(node, "num_groups", cut.blocks(cut.dims(call.input)[1], call.num_groups))
