"""The index graph: which channels of a model live and die together.

Every index of every dim of every value and weight is an atom. One short rule per op family ties atoms; connected
components are the prunable groups. Whatever set of free components is removed, every tensor stays a box, so residual
adds, concatenations, splits, grouped and depthwise convs and tied weights need no case of their own.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import arguments, describe, has_schema, is_getitem, op_name, tensors
from .constraints import EXTENT_ONE, Constraints, extents
from .factors import solve
from .relation import Dim, Dims, NoRule
from .rules import find_rule
from .rules.shuffle import find_shuffles
from .rules.table import replace_dim

# Ops that read a shape, not data: their inputs stay as prunable as they are.
SHAPE_READERS = frozenset({"sym_size", "sym_numel", "sym_stride", "_assert_tensor_metadata"})


class IndexGraph(Constraints):
    """Atoms, components and frozen reasons of a graph.

    values      node -> the dims of each of its tensors
    weights     name -> dims; tied weights share them
    fenced      node -> why it cannot be followed; its region is kept whole
    components  the groups of atoms
    pieces      the smaller components that equal counts allow to be matched anew, and the `loose` relations that do
    shuffles    reshape, transpose, reshape of one dim: the last call of each -> what it permutes
    blocked     weight of a grouped conv -> [blocks, extent]: what its dim 1 stands for in each block of its dim 0

    keep: names of weights whose channels all stay.
    """

    def __init__(self, graph: Graph, keep: Iterable[str] = ()):
        super().__init__(graph)
        self.weights: dict[str, Dims] = {}
        self.fenced: dict[fx.Node, str] = {}
        self.blocked: dict[str, np.ndarray] = {}
        self._by_tensor: dict[int, Dims] = {}
        self.shuffles = {shuffle.last: shuffle for shuffle in find_shuffles(graph)}
        self._inside = {node for shuffle in self.shuffles.values() for node in shuffle.inner}
        for node in graph.nodes:
            self._visit(node)
        self._solve(keep)

    def _solve(self, keep: Iterable[str]) -> None:
        for name in keep:
            dims = [self.channels[name]] if name in self.channels else self.weights[name]
            self.freeze(dims, "the layer is listed in 'keep'")
        dead = self.reason("no factor of their dim can be thinned alone")
        solution = solve(self.count, self.edges, self.frozen, self.relations, self.head_dims, dead)
        self.components, self.pieces, self.loose = solution.components, solution.pieces, solution.loose
        for name, (relation, factor) in self.shared.items():
            if (blocks := relation.blocks_of(factor)) is not None:
                self.blocked[name] = blocks
        whole = self.reason("all channels of a layer depend on each other")
        dims = [d for value in self.values.values() for tensor in value for d in tensor]
        covered = [(d, whole) for d in {id(d): d for d in dims}.values() if self.components.covers(d)]
        self.components.freeze(covered)

    def why_frozen(self, dim: Dim) -> str | None:
        """The reason that the first atom of a dim is frozen for, None if it is free."""
        reason = self.components.reason[self.components.label[dim[0]]]
        return next((why for why, number in self.reasons.items() if number == reason), None)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._read_weight(node)
        elif node.op == "placeholder":
            self._open(node, "they are part of a graph input")
        elif node.op == "output":
            for source in node.all_input_nodes:
                self.freeze(self._all_dims(source), "they are part of a graph output")
        elif is_getitem(node) and node.args[0] in self.values:
            self.values[node] = [self.values[node.args[0]][node.args[1]]]  # type: ignore[index]
        elif node.op == "call_function":
            self._call(node)
        self.freeze([d for d in self._all_dims(node) if len(d) == 1], EXTENT_ONE)

    def _read_weight(self, node: fx.Node) -> None:
        weight = self.graph.weight(node)
        if isinstance(weight, torch.Tensor):
            if id(weight) not in self._by_tensor:  # tied names are one weight
                self._by_tensor[id(weight)] = self.new(weight.shape)
            dims = self.weights[str(node.target)] = self._by_tensor[id(weight)]
            self.values[node] = [dims]

    def _call(self, node: fx.Node) -> None:
        if op_name(node) in SHAPE_READERS or node in self._inside or not self.tensor_like(node):
            return
        if shuffle := self.shuffles.get(node):
            x = self[shuffle.source]
            self.values[node] = [replace_dim(x, shuffle.dim, x[shuffle.dim][shuffle.positions])]
            return
        try:
            self.values[node] = self._apply_rule(node)
        except NoRule as refusal:
            self.fenced[node] = str(refusal)
            why = f"{describe(node)} cannot be followed: {refusal}"
            for source in node.all_input_nodes:
                self.freeze(self._all_dims(source), why)
            self._open(node, why)

    def tensor_like(self, node: fx.Node) -> bool:
        """The node reads or makes tensors; arithmetic on sizes does neither."""
        return bool(self.tensor_inputs(node) or tensors(node.meta.get("val")) or self._all_inputs(node))

    def _apply_rule(self, node: fx.Node) -> list[Dims]:
        rule = find_rule(node) if has_schema(node) else None
        if rule is None:
            raise NoRule("it has no rule")
        try:
            result = rule(self, node, arguments(node))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise NoRule(f"its rule does not cover this form of the call ({error})") from error
        dims = result if result and isinstance(result[0], list) else [result]
        if [[len(d) for d in tensor] for tensor in dims] != extents(node):
            raise NoRule("the extents that its rule gives are not the recorded ones")
        return dims  # type: ignore[return-value]

    def _open(self, node: fx.Node, why: str) -> None:
        self.values[node] = [self.new_frozen(shape, why) for shape in extents(node)]

    def _all_dims(self, node: fx.Node) -> Dims:
        return [dim for tensor in self.values.get(node, ()) for dim in tensor]

    def _all_inputs(self, node: fx.Node) -> Dims:
        return [dim for source in node.all_input_nodes for dim in self._all_dims(source)]
