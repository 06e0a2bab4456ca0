"""One layer as a graph of its own, for what has to be measured of it apart from the others."""

from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from ....ir import rewrite
from ....ir.graph import Graph, build_module
from ....ir.ops import arguments, is_op
from ..placement import ACTIVATION_QUANTIZER, quantizer_of
from .reference import Layer


def layer_alone(graph: Graph, layer: Layer, how: str) -> Graph:
    """The product of a layer with its epilogue, in calibrated form: `x` in, one tensor out, batch as in `graph`.

    how  integers: with the quantizers before, of the weight and, where there is one, behind; weights: with that of the
         weight; float: without any
    """
    structure, copies = fx.Graph(), {}
    end = layer.epilogue[-1] if layer.epilogue else layer.product
    behind = quantizer_of(end)
    read = arguments(layer.product).input
    copies[read] = structure.placeholder("x")
    copies[read].meta["val"] = read.meta["val"]
    wanted = _behind({layer.product, *layer.epilogue, *([behind] if how == "integers" and behind else ())}, read)
    before = next((graph.node(n) for n in layer.quantizers if is_op(graph.node(n), ACTIVATION_QUANTIZER)), None)
    scales = set(before.args[1:3]) if before is not None and how == "integers" else set[fx.Node]()
    for node in (n for n in graph.nodes if n in wanted or n in scales):
        if node is layer.product and before is not None and how == "integers":
            quantized = structure.node_copy(before, lambda n, x=copies[read]: copies.get(n, x))
            copies[read] = quantized
        copies[node] = structure.node_copy(node, copies.__getitem__)
    if how == "float" and layer.quantizer is not None:
        held = arguments(layer.quantizer).self
        copies[layer.quantizer].replace_all_uses_with(copies[held])
    structure.output((copies[behind if how == "integers" and behind else end],))
    specs = pytree.tree_structure(((0,), {})), pytree.tree_structure((0,))
    structure.set_codegen(_PyTreeCodeGen(_PyTreeInfo(["x"], *specs)))
    weights = {str(n.target): graph.weight(n) for n in structure.find_nodes(op="get_attr")}
    alone = Graph(build_module(weights, structure), {"fake-quant", "calibrated"} if how != "float" else set()).copy()
    rewrite.finish(alone)
    return alone


def _behind(nodes: set[fx.Node], end: fx.Node) -> set[fx.Node]:
    """These nodes and all that they read, short of `end`."""
    found, left = set(nodes), list(nodes)
    while left:
        for read in left.pop().all_input_nodes:
            if read is not end and read not in found:
                found.add(read)
                left.append(read)
    return found
