"""What the op rules say about atoms: which live and die together, which can never go, what the proof must know.

A dim that can never lose an index (a batch, spatial positions) has one atom for all its indices, shared by all dims
that stay for the same reason: most dims of most graphs are of this kind, and cost nothing.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeGuard

import numpy as np
import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import is_op, tensors
from ....ir.shapes import size
from .relation import Dim, Dims, NoRule, Relation

EXTENT_ONE = "there is only one"
# What may stand between a weight and the layer that it belongs to.
COPIES = ("lift_fresh_copy", "clone", "detach", "to", "_to_copy", "alias", "contiguous")
WEIGHT_WRAPPERS = (
    "fake_quantize_per_tensor_affine",
    "fake_quantize_per_channel_affine",
    "_weight_norm",
    "t",
    "transpose",
    "permute",
)


class Constraints:
    """The atoms of a graph and all that op rules record about them.

    An *atom* is one index of one dim of one value or weight. A rule reads the dims of its inputs (`index[node]`),
    calls the methods below and returns the dims of its output, reusing the arrays of its inputs where it can:
    a rename costs no edge.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
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
        self.shared: dict[str, tuple[Relation, str]] = {}
        reads = graph.module.graph.find_nodes(op="get_attr")
        self._readers = Counter(id(graph.weight(read)) for read in reads for _ in read.users)
        self._fixed: dict[int, int] = {}  # atom -> the number of the reason that it stays for

    def __getitem__(self, node: fx.Node) -> Dims:
        """The dims of a single-tensor value."""
        if len(self.values.get(node, ())) != 1:
            raise NoRule(f"its input '{node}' is not a tensor")
        return self.values[node][0]

    def constant(self, value: object) -> np.ndarray | None:
        """The numbers of an integer weight of one dim, such as a permutation; None for anything else."""
        while is_op(value, *COPIES):
            value = value.all_input_nodes[0]  # type: ignore[union-attr]
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        weight = self.graph.weight(value)
        is_index = isinstance(weight, torch.Tensor) and weight.dtype in (torch.int64, torch.int32) and weight.ndim == 1
        return weight.detach().cpu().numpy() if is_index else None

    def is_tensor(self, value: object) -> TypeGuard[fx.Node]:
        return isinstance(value, fx.Node) and len(self.values.get(value, ())) == 1

    def tensor_inputs(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if self.is_tensor(n)]

    def new(self, extents: Sequence[int]) -> Dims:
        """New atoms for a tensor of these extents."""
        ends = np.cumsum([self.count, *extents])
        self.count = int(ends[-1])
        return [np.arange(start, end, dtype=np.int32) for start, end in pairwise(ends)]

    def new_frozen(self, extents: Sequence[int], why: str) -> Dims:
        """Dims that stay whole: all their indices are one frozen atom."""
        reason = self.reason(why)
        atom = next((atom for atom, other in self._fixed.items() if other == reason), None)
        if atom is None:
            atom, self.count = self.count, self.count + 1
            self._fixed[atom] = reason
            self.frozen.append((np.array([atom], np.int32), reason))
        return [np.broadcast_to(np.int32(atom), (extent,)) for extent in extents]

    def one(self) -> Dim:
        """The only index of a dim of extent 1."""
        return self.new_frozen([1], EXTENT_ONE)[0]

    def is_fixed(self, dim: Dim) -> bool:
        """The dim was frozen as it was made, or is such a dim renamed."""
        return len(dim) > 0 and dim.strides == (0,) and int(dim[0]) in self._fixed

    def tie(self, a: Dim, b: Dim) -> None:
        """a[i] and b[i] live and die together."""
        if len(a) != len(b):
            raise NoRule(f"extents {len(a)} and {len(b)} do not match")
        if a is b:
            return
        if self.is_fixed(a):
            a, b = b, a
        if not self.is_fixed(b):
            self.edges.append((a, b))
        elif not self.is_fixed(a):  # not an edge: it would merge all that stays into one component, and its reasons
            self.frozen.append((a, self._fixed[int(b[0])]))

    def align(self, a: Dims, b: Dims) -> None:
        """Tie two tensors' dims from the last one on. Extents that differ are broadcast and add nothing."""
        for one, other in zip(reversed(a), reversed(b), strict=False):
            if len(one) == len(other):
                self.tie(one, other)

    def freeze(self, dims: Iterable[Dim], why: str) -> None:
        """No atom of these dims is ever removed; of several reasons the first stays."""
        reason = self.reason(why)
        self.frozen += [(dim, reason) for dim in dims if not self.is_fixed(dim)]

    def reason(self, why: str) -> int:
        return self.reasons.setdefault(why, len(self.reasons))

    def relate(
        self,
        node: fx.Node,
        sizes: dict[str, int],
        *views: tuple[Dim, Sequence[str]],
        dead: Iterable[str] = (),
        equal_counts: Iterable[str] = (),
        shared: tuple[fx.Node, str] | None = None,
    ) -> Relation:
        """Dims that are mixed-radix numbers over the factors in `sizes`.

        equal_counts  factors for which it is enough that every repetition loses equally many digits
        shared        (weight, factor): dim 1 of the weight is this factor alone, and stands for other atoms in each
                      block of dim 0; a weight that is computed, or read twice, loses the same indices in every block
        """
        stay = [f for dim, factors in views if self.is_fixed(dim) for f in factors]
        if shared and not self._is_read_once(shared[0]):
            equal_counts = ()
        relation = Relation(node, sizes, views, (*dead, *stay), equal_counts)
        self.relations.append(relation)
        if shared and equal_counts:
            self.shared[str(shared[0].target)] = (relation, shared[1])
        return relation

    def renumber(
        self,
        node: fx.Node,
        sizes: dict[str, int],
        views: Sequence[tuple[Dim, Sequence[str]]],
        new: Sequence[Sequence[str]],
        dead: Sequence[str] = (),
    ) -> Dims:
        """New dims over the factors of others, the most significant first. Dims that leave no choice cost no atoms."""
        stay = [f for dim, factors in views if self.is_fixed(dim) for f in factors]
        relation = Relation(node, sizes, views, (*dead, *stay))
        if any(len(relation.live(factors)) > 1 for factors in (*new, *(factors for _, factors in views))):
            dims = self.new([math.prod(sizes[f] for f in factors) for factors in new])
            self.relate(node, sizes, *views, *zip(dims, new, strict=True), dead=dead)
            return dims
        self.relations.append(relation)
        stays = next((dim for dim, factors in views if not relation.live(factors)), None)
        return [self._repeated(relation, factors, stays) for factors in new]

    def _repeated(self, relation: Relation, factors: Sequence[str], stays: Dim | None) -> Dim:
        """The dim that repeats the atoms of the one live factor among `factors`; without one it is one that stays."""
        extents = [relation.sizes[f] for f in factors]
        if not (live := relation.live(factors)):
            assert stays is not None
            return np.broadcast_to(stays[:1], (math.prod(extents),))
        atoms = relation.slices(live[0])[0][0]
        shape = [len(atoms) if f == live[0] else 1 for f in factors]
        return np.broadcast_to(atoms.reshape(shape), extents).reshape(-1)

    def _is_read_once(self, weight: fx.Node) -> bool:
        return weight.op == "get_attr" and self._readers[id(self.graph.weight(weight))] == 1

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
