"""Taking layers out of quantization, as if insert-fake-quant had been told so."""

from collections.abc import Iterable

from ....ir import rewrite
from ....ir.graph import Graph
from ....ir.ops import arguments, is_op
from ..placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER, place
from ..rules import WEIGHT_AXIS
from .reference import Layer, bypass, float_form, quantized_layers


def without(graph: Graph, layers: Iterable[Layer], weights_alone: Iterable[Layer] = ()) -> Graph:
    """Take the quantizers of these layers out of a graph: it may be a copy of the one that they were found in.

    weights_alone  layers that keep the quantizer of their weight, but read floats

    A value stays quantized where insert-fake-quant would quantize it with these layers in `keep`.
    """
    nodes = {node.name: node for node in graph.nodes}
    for quantizer in [nodes[name] for layer in layers for name in layer.quantizers]:
        if is_op(quantizer, WEIGHT_QUANTIZER):
            bypass(graph, quantizer)
    whole = float_form(graph)
    reading = {layer.product.name for layer in weights_alone}
    rounded = {layer.twin for layer in quantized_layers(graph, whole) if layer.product.name not in reading}
    kept = {product: "it reads floats" for product in whole.calls(*WEIGHT_AXIS) if product not in rounded}
    read = {value.name for group in place(whole, kept).groups for value in group}
    for quantizer in graph.calls(ACTIVATION_QUANTIZER):
        source = arguments(quantizer).self
        for reader in [user for user in quantizer.users if user.name in reading]:
            reader.replace_input_with(quantizer, source)
        if source.name not in read:
            bypass(graph, quantizer)
    rewrite.tidy(graph)
    return graph


def at_width(graph: Graph, layer: Layer, width: int) -> Graph:
    """The graph with the levels and scales of one weight changed to another width."""
    assert layer.quantizer is not None
    quantizer = graph.node(layer.quantizer.name)
    call, limit = arguments(quantizer), 2 ** (width - 1) - 1
    if limit != call.quant_max:
        scale = graph.weight(call.scale)
        rewrite.set_weight(graph, str(call.scale.target), scale * (call.quant_max / limit))
        rewrite.set_argument(graph, quantizer, "quant_min", -limit)
        rewrite.set_argument(graph, quantizer, "quant_max", limit)
        graph.module.recompile()
    return graph
