"""The shift of a layer's output by the rounding of its weight, from the expected value of its input."""

from collections.abc import Mapping
from typing import Any

from torch import fx

from ....ir.graph import Graph
from ....ir.ops import arguments
from ...layers.patches import channel_last
from ...layers.walk import Walk
from .expectation import Expected
from .reference import Layer, channel_dim, shift_bias


def correct_from_statistics(graph: Graph, layer: Layer, expected: Mapping[fx.Node, Expected]) -> dict[str, Any] | str:
    """Shift the bias of one layer of the quantized graph; facts about it, or why the mean of its input is not known.

    expected  of the float graph's values

    E[wq x] - E[w x] = (wq - w) E[x], which the layer itself computes, without its bias, on one sample of expected
    values: zeros that it pads with count as it meets them. Averaged over positions.
    """
    product, twin = layer.product, layer.twin
    read = expected[arguments(twin).input]
    if bool(read.mean.isnan().any()):
        return f"the mean of its input is not known: {read.why}"
    rounded = Walk(graph).read({}, arguments(product).weight)
    change = rounded.detach().double() - graph.weight(layer.weight).detach().double()
    call = arguments(twin)
    stand_ins = {call.input: read.mean, call.weight: change, call.bias: None}
    args, kwargs = fx.map_arg((twin.args, twin.kwargs), lambda n: stand_ins[n])
    shift = twin.target(*args, **kwargs)  # type: ignore[operator]
    added = channel_last(shift, channel_dim(twin, shift.ndim)).mean(0)
    shift_bias(graph, product, -added)
    return {"layer": layer.name, "most": float(added.abs().max())}
