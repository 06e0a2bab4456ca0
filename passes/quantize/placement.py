"""Where quantizers go: a walk forward (what can be integers) and one backward (what integer ops read)."""

from dataclasses import dataclass, field

import torch
from torch import fx

from ...ir.graph import Graph
from ...ir.ops import is_op, only_user
from ..base import Skip
from .rules import WEIGHT_AXIS, Role, Roles, data_inputs

ACTIVATION_QUANTIZER = "fake_quantize_per_tensor_affine"
WEIGHT_QUANTIZER = "fake_quantize_per_channel_affine"
# Which of the model's inputs and outputs are integers.
EDGES = ("float", "inputs", "outputs", "integer")
INTEGER_INPUTS, INTEGER_OUTPUTS = ("inputs", "integer"), ("outputs", "integer")


@dataclass
class Placement:
    """The values to quantize.

    products  products that run in integers
    groups    lists of values that share one scale; most hold one value
    readers   per value the nodes that read it quantized
    skipped   ops that stay in float where integers would have been of use, and why
    """

    products: list[fx.Node] = field(default_factory=list)
    groups: list[list[fx.Node]] = field(default_factory=list)
    readers: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)


def place(graph: Graph, kept: dict[fx.Node, str], *, outputs: bool = False) -> Placement:
    """Decide where quantizers go. `kept` holds the calls that stay in float, each with its reason.

    outputs: the model's float32 outputs are quantized too, whatever computes them.

    A value is quantized where an integer op reads it, directly or through ops that only move values. Products are
    integer ops; other ops are where their result is read so and one of their inputs comes from integers (of a matrix
    product both): an op between float values gains nothing. Outputs of the model that nothing inside reads stay in
    float.
    """
    return _Walk(graph, kept, graph.module.graph.output_node() if outputs else None).placement()


def quantizer_of(value: fx.Node) -> fx.Node | None:
    """The activation quantizer that stands behind a value."""
    return next((user for user in value.users if is_op(user, ACTIVATION_QUANTIZER)), None)


class _Walk:
    def __init__(self, graph: Graph, kept: dict[fx.Node, str], output: fx.Node | None):
        self.roles = Roles(graph, kept)
        self.calls = [n for n in graph.nodes if n.op in ("call_function", "placeholder")]
        self.kept = kept
        self.integers = self._made_of_integers()
        self.output = output
        self.demanded = {read for read in output.all_input_nodes if _is_float(read)} if output else set[fx.Node]()
        self.reads: dict[fx.Node, list[fx.Node]] = {}
        for node in reversed(self.calls):  # readers come later, so `demanded` is complete when a node is reached
            self.reads[node] = self._needs(node)
            self.demanded.update(self.reads[node])

    def placement(self) -> Placement:
        values = [n for n in self.calls if n in self.demanded and self.roles[n] not in (Role.PASS, Role.JOIN)]
        return Placement(
            products=[n for n in self.calls if self.roles[n] is Role.PRODUCT],
            groups=self._share_scales(values),
            readers={value: self._readers(value) for value in values},
            skipped=[skip for node in self.calls if (skip := self._skip(node))],
        )

    def _made_of_integers(self) -> set[fx.Node]:
        """Values that ops with integer forms compute from at least one integer product."""
        found: set[fx.Node] = set()
        for node in self.calls:
            role, reads = self.roles[node], [read in found for read in node.all_input_nodes]
            enough = {Role.PRODUCT: True, Role.FLOAT: False, Role.MATMUL: all(reads)}.get(role, any(reads))
            if enough:
                found.add(node)
        return found

    def _needs(self, node: fx.Node) -> list[fx.Node]:
        """The values that a node reads quantized."""
        if self.roles[node] is Role.PRODUCT:
            return data_inputs(node)
        moves = self.roles[node] in (Role.PASS, Role.JOIN)
        computes = self.roles[node] in (Role.ARITHMETIC, Role.MATMUL, Role.UNARY) and node in self.integers
        heads_epilogue = computes and self.roles.fused_head(node) is None
        if node in self.demanded:
            return data_inputs(node) if moves or heads_epilogue else []
        return data_inputs(node) if heads_epilogue and self._is_clipped_later(node) else []

    def _is_clipped_later(self, node: fx.Node) -> bool:
        """True where the only reader is this op's epilogue, and the quantizer stands behind that."""
        reader = only_user(node)
        if reader is None or self.roles.fused_head(reader) is None:
            return False
        return reader in self.demanded or self._is_clipped_later(reader)

    def _skip(self, node: fx.Node) -> Skip | None:
        why = self.roles.why_float(node)
        if self.roles[node] is Role.MATMUL and node not in self.integers:
            why = "it multiplies a value that does not come from integers"
        if is_op(node, *WEIGHT_AXIS) or node in self.kept:
            return Skip.at(node, f"{why}; it stays in float") if why else None
        between = node in self.demanded and any(read in self.integers for read in node.all_input_nodes)
        if between and why:
            return Skip.at(node, f"{why}; it stays in float between integer ops")
        return None

    def _share_scales(self, values: list[fx.Node]) -> list[list[fx.Node]]:
        """Values that one join puts side by side have one scale; others one each. In graph order."""
        group = {value: [value] for value in values}
        for join in (n for n in self.calls if self.roles[n] is Role.JOIN and n in self.demanded):
            first, *others = (group[value] for value in self.roles.sources(join))
            for other in others:
                if other is not first:
                    first.extend(other)
                    group.update(dict.fromkeys(other, first))
        order = {value: at for at, value in enumerate(values)}
        unique = {id(members): sorted(members, key=order.__getitem__) for members in group.values()}
        return list(unique.values())

    def _readers(self, value: fx.Node) -> list[fx.Node]:
        """Who reads the quantized value.

        An integer op stores only int8, so every op reads that, but for what the user keeps in float: lower-integers
        sees then that its inputs are floats. A float op's result stays there for float readers. A product that is kept
        reads integers all the same, for it is no integer op with a float weight.
        The model's own output is float unless integers were asked for.
        """
        edge = [self.output] if self.output is not None and self.output in value.users else []
        calls = [user for user in value.users if user.op == "call_function" and not is_op(user, ACTIVATION_QUANTIZER)]
        if value not in self.integers:
            return edge + [user for user in calls if value in self.reads[user]]
        return edge + [user for user in calls if user not in self.kept or is_op(user, *WEIGHT_AXIS)]


def _is_float(value: fx.Node) -> bool:
    recorded = value.meta.get("val")
    return value.op == "call_function" and isinstance(recorded, torch.Tensor) and recorded.dtype == torch.float32
