"""What the op rules say about atoms: which live and die together, which can never go, what the proof must know."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeGuard

import numpy as np
from torch import fx

from ....ir.ops import is_op, tensors
from ....ir.shapes import size
from .relation import Dim, Dims, NoRule, Relation

# What may stand between a weight and the layer that it belongs to.
WEIGHT_WRAPPERS = ("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", "t", "transpose", "permute")


class Constraints:
    """The atoms of a graph and all that op rules record about them.

    An *atom* is one index of one dim of one value or weight. A rule reads the dims of its inputs (`index[node]`),
    calls the methods below and returns the dims of its output, reusing the arrays of its inputs where it can:
    a rename costs no edge.
    """

    def __init__(self) -> None:
        self.count = 0
        self.values: dict[fx.Node, list[Dims]] = {}
        self.edges: list[tuple[Dim, Dim]] = []
        self.frozen: list[tuple[Dim, int]] = []
        self.reasons: dict[str, int] = {}
        self.relations: list[Relation] = []
        self.head_dims: list[Dim] = []
        self.contracted: dict[fx.Node, list[tuple[fx.Node, int]]] = defaultdict(list)
        self.mixed: dict[fx.Node, Dims] = defaultdict(list)
        self.products: list[tuple[fx.Node, Dims]] = []
        self.channels: dict[str, Dim] = {}

    def __getitem__(self, node: fx.Node) -> Dims:
        """The dims of a single-tensor value."""
        if len(self.values.get(node, ())) != 1:
            raise NoRule(f"its input '{node}' is not a tensor")
        return self.values[node][0]

    def is_tensor(self, value: object) -> TypeGuard[fx.Node]:
        return isinstance(value, fx.Node) and len(self.values.get(value, ())) == 1

    def tensor_inputs(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if self.is_tensor(n)]

    def new(self, extents: Sequence[int]) -> Dims:
        """New atoms for a tensor of these extents."""
        ends = np.cumsum([self.count, *extents])
        self.count = int(ends[-1])
        return [np.arange(start, end) for start, end in pairwise(ends)]

    def new_frozen(self, extents: Sequence[int], why: str) -> Dims:
        dims = self.new(extents)
        self.freeze(dims, why)
        return dims

    def tie(self, a: Dim, b: Dim) -> None:
        """a[i] and b[i] live and die together."""
        if len(a) != len(b):
            raise NoRule(f"extents {len(a)} and {len(b)} do not match")
        if a is not b:
            self.edges.append((a, b))

    def align(self, a: Dims, b: Dims) -> None:
        """Tie two tensors' dims from the last one on. Extents that differ are broadcast and add nothing."""
        for one, other in zip(reversed(a), reversed(b), strict=False):
            if len(one) == len(other):
                self.tie(one, other)

    def freeze(self, dims: Iterable[Dim], why: str) -> None:
        """No atom of these dims is ever removed; of several reasons the first stays."""
        reason = self.reason(why)
        self.frozen += [(dim, reason) for dim in dims]

    def reason(self, why: str) -> int:
        return self.reasons.setdefault(why, len(self.reasons))

    def relate(
        self,
        node: fx.Node,
        sizes: dict[str, int],
        *views: tuple[Dim, Sequence[str]],
        dead: Iterable[str] = (),
    ) -> None:
        """Dims that are mixed-radix numbers over the factors in `sizes`."""
        self.relations.append(Relation(node, sizes, views, dead))

    def contract(self, node: fx.Node, operand: fx.Node, dim: int) -> None:
        """`node` sums products over this dim of `operand`: a removed index contributes nothing."""
        self.contracted[node].append((operand, dim % len(self[operand])))

    def mix(self, node: fx.Node, dims: Dims) -> None:
        """`node` computes over all of these dims at once: without an index the remaining results change."""
        self.mixed[node] += dims

    def multiply(self, node: fx.Node, dims: Dims) -> None:
        """The multiply-accumulates of `node` are proportional to the product of these extents."""
        self.products.append((node, dims))

    def heads(self, dims: Iterable[Dim]) -> None:
        """Batch dims of an attention or a matmul between two activations."""
        self.head_dims += dims

    def produce(self, weight: fx.Node, channels: Dim) -> None:
        """These are the channels that a layer's weight makes: what `keep` protects and what reports count."""
        while is_op(weight, *WEIGHT_WRAPPERS):
            weight = weight.all_input_nodes[0]
        if weight.op == "get_attr":
            self.channels.setdefault(str(weight.target), channels)


def extents(node: fx.Node) -> list[list[int]]:
    """The recorded extents of each tensor of a node, symbolic ones as their example values."""
    return [[size(extent) for extent in tensor.shape] for tensor in tensors(node.meta.get("val"))]
