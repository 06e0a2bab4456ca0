"""A graph's function in training form: it shares the graph's weights, and the graph itself stays in eval form."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ...ir import shapes
from ...ir.graph import TRAINING_ARGUMENT, Graph, GraphModule, attribute, build_module, set_call_argument
from ...ir.ops import arguments, op_name
from .grid_biases import GridBiases, on_grid
from .learned_scales import LearnedScales
from .step_size import learned_step


@dataclass(frozen=True)
class Values:
    """What one run of a model gave: its outputs, nested as the model nests them, and the values that were asked for."""

    outputs: Any
    inner: tuple[torch.Tensor, ...]


class TrainingForm:
    """Runs a graph's function with its own weights, in training or eval form, and shows inner values.

    module  takes one value per placeholder and returns (outputs..., inner values...), flat; its parameters and buffers
            are those of the graph, not copies
    scales  quantizers read these instead of the graph's buffers
    biases  these are read rounded, as integers will hold them
    """

    def __init__(
        self,
        graph: Graph,
        inner: Sequence[fx.Node] = (),
        *,
        training: bool = True,
        scales: LearnedScales | None = None,
        biases: GridBiases | None = None,
    ):
        self._constants = [_constant(node) for node in graph.module.graph.find_nodes(op="placeholder")]
        self._outputs = graph.module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
        self.module, self._twins = _build(graph, inner, scales, biases)
        self.module.train(training)

    def __call__(self, tensors: Iterable[torch.Tensor]) -> Values:
        """tensors: the model's inputs, in the order of `Graph.inputs`."""
        remaining = iter(tensors)
        leaves = [next(remaining) if is_input else value for is_input, value in self._constants]
        flat = self.module(*leaves)
        count = self._outputs.num_leaves
        return Values(pytree.tree_unflatten(flat[:count], self._outputs), tuple(flat[count:]))

    def freeze(self, nodes: Iterable[fx.Node]) -> None:
        """These batch norms of the graph are in eval form from now on."""
        for node in nodes:
            set_call_argument(self._twins[node], TRAINING_ARGUMENT[op_name(node)], False)
        self.module.recompile()


def unique_weights(graph: Graph) -> dict[str, torch.Tensor]:
    """Every parameter and buffer that the graph reads, once: of tied names the first."""
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in graph.weights.items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def _constant(placeholder: fx.Node) -> tuple[bool, Any]:
    """(whether a tensor is to be given, the value that the model was captured with)."""
    is_constant = shapes.is_constant_input(placeholder)
    return not is_constant, placeholder.meta["val"] if is_constant else None


def _build(
    graph: Graph, inner: Sequence[fx.Node], scales: LearnedScales | None, biases: GridBiases | None
) -> tuple[GraphModule, dict[fx.Node, fx.Node]]:
    """The module, and its nodes by those of the graph."""
    structure, twins = fx.Graph(), {}
    outputs = structure.graph_copy(graph.module.graph, twins)
    structure.output((*pytree.tree_leaves(outputs), *(twins[node] for node in inner)))
    names = dict.fromkeys(str(node.target) for node in graph.module.graph.find_nodes(op="get_attr"))
    root = {name: attribute(graph.module, name) for name in names}
    if scales is not None:
        root |= _let_scales_learn(structure, twins, scales)
    if biases is not None:
        _round_biases(structure, twins, biases)
    return build_module(root, structure), twins


def _let_scales_learn(structure: fx.Graph, twins: dict[fx.Node, fx.Node], scales: LearnedScales) -> dict[str, Any]:
    """Put `learned_step` in the place of every quantizer. Returns what it reads, by name."""
    root: dict[str, Any] = {}
    names = {name: f"_learned_scales.{position}" for position, name in enumerate(scales.parameters)}
    for node, learned in scales.of.items():
        old, call = twins[node], arguments(node)
        name = names[learned.name]
        root |= {f"{name}.latent": learned.latent, f"{name}.unit": learned.unit}
        with structure.inserting_before(old):
            latent, unit = (structure.get_attr(f"{name}.{part}") for part in ("latent", "unit"))
            reads = twins[call.self], latent, twins[call.scale], twins[call.zero_point], unit
            new = structure.call_function(learned_step, (*reads, *dataclasses.astuple(learned.step)))
        old.replace_all_uses_with(new)
        structure.erase_node(old)
        twins[node] = new
    return root


def _round_biases(structure: fx.Graph, twins: dict[fx.Node, fx.Node], biases: GridBiases) -> None:
    """Let products read their biases through `on_grid`."""
    for entry in biases.all:
        product = twins[entry.product]
        reads = tuple(twins[node] for node in (entry.bias, entry.input_scale, entry.weight_scale))
        with structure.inserting_before(product):
            rounded = structure.call_function(on_grid, reads)
        set_call_argument(product, "bias", rounded)
