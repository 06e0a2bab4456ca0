"""Splitting a graph: the largest regions that TVM can take, and calls that stay in PyTorch.

before:  conv2d -> relu -> fft_fft2 -> abs -> linear
after:   region_0(conv2d -> relu) -> fft_fft2 -> region_1(abs -> linear)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.graph import CodeGen
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import create_op_support
from torch.fx.passes.utils.fuser_utils import fuse_by_partitions
from torch.utils import _pytree as pytree

from ..ir import rewrite
from ..ir.capture import has_effect
from ..ir.errors import BuildError
from ..ir.graph import Graph, attribute, build_module
from ..ir.integers.dynamic import LINEAR_DYNAMIC, LSTM_DYNAMIC
from ..ir.integers.packed_weights import WEIGHT_ONLY
from ..ir.ops import WEIGHTED_PRODUCTS, arguments, describe, is_op, is_random, is_view, op_name, tensors, writes

# One of these is worth a region of its own; of other ops it takes two, because fusing them saves a trip to memory.
PRODUCTS = frozenset(
    {
        *(*WEIGHTED_PRODUCTS, "convolution", WEIGHT_ONLY, LINEAR_DYNAMIC, LSTM_DYNAMIC),
        *("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention"),
    }
)
_MOVES = frozenset({"getitem", "clone", "contiguous", "lift_fresh_copy", "sym_size"})
# The argument that holds positions.
INDEX_ARGUMENTS = {
    "embedding": "indices",
    "index": "indices",
    "index_put": "indices",
    "index_select": "index",
    "gather": "index",
    "scatter": "index",
    "take": "index",
}
_DTYPES = frozenset({torch.float32, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool})


@dataclass(frozen=True)
class Split:
    """A graph in parts.

    module   takes the graph's inputs one by one and gives a tuple of its outputs; regions are its submodules
    regions  the submodules that are for TVM, by name, as graphs of their own
    reasons  why a part that could have been a region is none
    """

    module: fx.GraphModule
    regions: dict[str, Graph]
    reasons: tuple[str, ...] = ()


def refusal(node: fx.Node, *, half: bool = False) -> str | None:
    """Why a call must stay in PyTorch whatever TVM knows of its op; None when nothing speaks against it.

    half  the machine computes in float16
    """
    if writes(node):
        return "it writes into memory that other values share"
    if is_random(node):
        return "it draws random numbers"
    packed = arguments(node).weight if is_op(node, WEIGHT_ONLY) else None  # in a dtype that only its kernel reads
    read = [n for n in node.all_input_nodes if n is not packed]
    values = [t for n in (node, *read) for t in tensors(n.meta.get("val"))]
    known = _DTYPES | {torch.float16} if half else _DTYPES
    foreign = sorted({str(t.dtype) for t in values} - {str(dtype) for dtype in known})
    return f"it computes in {', '.join(foreign)}" if foreign else None


def reads_by_index(node: fx.Node) -> bool:
    """True for a call that reads elements at positions which the model's inputs decide."""
    indices = INDEX_ARGUMENTS.get(op_name(node))
    if node.op != "call_function" or indices is None:
        return False
    given = pytree.tree_leaves(getattr(arguments(node), indices))
    return any(isinstance(index, fx.Node) and index.op != "get_attr" for index in given)


def is_computation(node: fx.Node) -> bool:
    """True for a call that does arithmetic on tensors: no view, no copy, no size."""
    is_call = node.op == "call_function" and bool(tensors(node.meta.get("val")))
    return is_call and not is_view(node) and op_name(node) not in _MOVES


def base_of_view(node: fx.Node) -> fx.Node:
    """The value whose memory a chain of views shows: the node itself where it is no view."""
    while is_view(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node


def output_nodes(graph: Graph) -> list[fx.Node]:
    (output,) = graph.module.graph.find_nodes(op="output")
    return [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, fx.Node)]


def split(graph: Graph, refused: Mapping[str, str], *, renew_views: bool = False) -> Split:
    """Split a frozen graph. `refused` names the calls that stay in PyTorch.

    renew_views  returned views are made in PyTorch, so that they share memory with an input or with each other as the
                 model's own do
    """
    work = graph.copy()
    _flatten_call_form(work)
    edges = _renew_returned_views(work) if renew_views else set()
    _read_sizes_from_inputs(work)
    stay = {*refused, *edges}

    def takes(_: Mapping[str, torch.nn.Module], node: fx.Node) -> bool:
        return node.op == "call_function" and node.name not in stay and bool(tensors(node.meta.get("val")))

    support = create_op_support(takes)
    partitioner = CapabilityBasedPartitioner(work.module, support, allows_single_node_partition=True)
    proposed = [dict(partition.nodes) for partition in partitioner.propose_partitions()]
    parts = sorted((p for p in proposed if is_worthwhile(p)), key=_first_position(work))
    for part in parts:
        _own_weights(work, part)
    module = fuse_by_partitions(work.module, parts, prefix="region_")
    module.graph.lint()
    module.recompile()
    regions, reasons = {}, []
    for name in [f"region_{i}" for i in range(len(parts))]:
        try:
            regions[name] = _region_graph(getattr(module, name))
        except BuildError as error:
            reasons.append(str(error))
    return Split(module, regions, tuple(reasons))


def is_worthwhile(nodes: Iterable[fx.Node]) -> bool:
    """A product, or at least two computations."""
    computations = [node for node in nodes if is_computation(node)]
    return len(computations) >= 2 or any(op_name(node) in PRODUCTS for node in computations)


def calls_of(module: fx.GraphModule, inside: Callable[[str], bool]) -> list[fx.Node]:
    """The calls of a split's module, with those of the submodules that `inside` says yes to."""
    found = []
    for node in module.graph.nodes:
        if node.op == "call_function":
            found.append(node)
        elif node.op == "call_module" and inside(str(node.target)):
            found += calls_of(getattr(module, str(node.target)), inside)
    return found


def _flatten_call_form(graph: Graph) -> None:
    graph.module.graph.set_codegen(CodeGen())
    (output,) = graph.module.graph.find_nodes(op="output")
    output.args = (tuple(output_nodes(graph)),)


def _renew_returned_views(graph: Graph) -> set[str]:
    """Compute every returned view a second time, for the output alone. Gives the names of the new calls.

    A returned constant is cloned at each call: the caller may write into what it gets.
    """
    (output,) = graph.module.graph.find_nodes(op="output")
    renewed: dict[fx.Node, fx.Node] = {}

    def renew(node: fx.Node) -> fx.Node:
        if node in renewed:
            return renewed[node]
        if node.op == "get_attr":
            made = rewrite.insert(graph, torch.ops.aten.clone.default, (node,), before=output)
        elif is_view(node):
            source = node.args[0]
            assert isinstance(source, fx.Node) and callable(node.target)
            args = (renew(source), *node.args[1:])
            made = rewrite.insert(graph, node.target, args, dict(node.kwargs), before=output, like=node)
        else:
            return node
        renewed[node] = made
        return made

    output.args = (tuple(renew(leaf) for leaf in output.args[0]),)  # type: ignore[union-attr]
    graph.module.graph.eliminate_dead_code(is_impure_node=has_effect)
    return {node.name for node in renewed.values()}


def _read_sizes_from_inputs(graph: Graph) -> None:
    """Let every symbolic size that is an input's extent be read off that input, so that no size ties regions."""
    extents: dict[str, tuple[fx.Node, int]] = {}
    placeholders = graph.module.graph.find_nodes(op="placeholder")
    for source in placeholders:
        for dim, extent in enumerate(source.meta["val"].shape):
            if isinstance(extent, torch.SymInt):
                extents.setdefault(_symbol(extent), (source, dim))
    made: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        value = node.meta.get("val")
        key = _symbol(value)
        if node.op != "call_function" or key not in extents or node in made.values():
            continue
        if key not in made:
            first_call = placeholders[-1].next
            made[key] = rewrite.insert(graph, torch.ops.aten.sym_size.int, extents[key], before=first_call, like=node)
        rewrite.replace(graph, node, made[key])


def _first_position(graph: Graph) -> Callable[[dict[fx.Node, int | None]], int]:
    positions = {node: i for i, node in enumerate(graph.nodes)}
    return lambda part: min(positions[node] for node in part)


def _own_weights(graph: Graph, part: dict[fx.Node, int | None]) -> None:
    """Give a part its own reads of the weights, so that they are no inputs of the region."""
    own: dict[str, fx.Node] = {}
    for node in list(part):
        for read in [n for n in node.all_input_nodes if n.op == "get_attr"]:
            if read.target not in own:
                with graph.module.graph.inserting_before(read):
                    own[str(read.target)] = graph.module.graph.node_copy(read)
            node.replace_input_with(read, own[str(read.target)])
    part.update(dict.fromkeys(own.values()))
    for read in graph.module.graph.find_nodes(op="get_attr"):
        if not read.users:
            graph.module.graph.erase_node(read)


def _region_graph(module: fx.GraphModule) -> Graph:
    """A region as a graph. Raises BuildError where it needs a size that none of its inputs has."""
    weights = {n.target: attribute(module, n.target) for n in module.graph.find_nodes(op="get_attr")}
    graph = Graph(build_module(weights, module.graph)).copy()
    placeholders = graph.module.graph.find_nodes(op="placeholder")
    for number in [n for n in placeholders if not isinstance(n.meta["val"], torch.Tensor)]:
        read = _size_within(graph, number, placeholders)
        rewrite.replace(graph, number, read)
    rewrite.finish(graph)
    return graph


def _size_within(graph: Graph, number: fx.Node, placeholders: list[fx.Node]) -> fx.Node:
    wanted = _symbol(number.meta["val"])
    for source in placeholders:
        value = source.meta["val"]
        for dim, extent in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if _symbol(extent) == wanted:
                first_call = placeholders[-1].next
                return rewrite.insert(graph, torch.ops.aten.sym_size.int, (source, dim), before=first_call)
    what = f"its region needs the size {wanted}, which no tensor of the region has"
    raise BuildError(describe(next(iter(number.users))), what, "fix the batch, or leave it in PyTorch")


def _symbol(value: Any) -> str:
    """A symbolic size as text: equal texts are equal sizes within one graph."""
    return str(value.node.expr) if isinstance(value, torch.SymInt) else repr(value)
