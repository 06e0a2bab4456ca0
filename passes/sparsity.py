"""Sparse weights: which weights are factors of products, which of their zeros must stay, and the check that they do.

A sparse graph keeps no second copy of its masks: the zeros of its products' weights are the masks. Training lets
them stay by multiplying gradients and weights with `masks(graph)`.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from ..ir.errors import VerifyError
from ..ir.graph import Graph, attribute
from ..ir.ops import CONVS, TRANSPOSED_CONVS, arguments, describe, is_op, op_name

SPARSE = "sparse"
# The dim of the weight that a product sums over; for a grouped transposed conv each of its groups sums over a part.
SUMMED_DIM: dict[str, int] = {
    **dict.fromkeys(("linear", *CONVS, "lstm", "gru", "rnn_tanh", "rnn_relu"), 1),
    **dict.fromkeys(TRANSPOSED_CONVS, 0),
}
# Products of two tensors of equal standing: a parameter may be the left or the right factor.
MATRIX_PRODUCTS = ("matmul", "mm", "bmm", "addmm", "baddbmm")
# Products of which the summed dim of each operand is not known here.
OTHER_PRODUCTS = ("einsum", "bilinear")


@dataclass(frozen=True)
class Summed:
    """The dim of a weight that its products sum over, and the length of the part that one group of a conv sums."""

    dim: int
    extent: int


@dataclass(frozen=True)
class Factor:
    """A parameter of two or more dims that only products read. `summed` is None where they do not agree on it."""

    name: str
    products: tuple[fx.Node, ...]
    summed: Summed | None


def factors(graph: Graph) -> tuple[dict[str, Factor], dict[str, str]]:
    """The factors by name, and for every other parameter of two or more dims why it is none. Of tied names the first.

    Vectors (biases, the scales of norms) are in neither.
    """
    reads: dict[int, list[tuple[fx.Node, fx.Node]]] = defaultdict(list)
    for read in graph.module.graph.find_nodes(op="get_attr"):
        reads[id(attribute(graph.module, read.target))] += [(read, user) for user in read.users]
    found, others = {}, {}
    for name, weight in graph.parameters.items():
        if weight.ndim < 2:
            continue
        strangers = [user for read, user in reads[id(weight)] if not _is_factor(read, user)]
        if strangers:
            others[name] = f"{describe(strangers[0])} reads it, which is no product with a weight"
        else:
            summed = {_summed(weight, read, user) for read, user in reads[id(weight)]}
            users = tuple(dict.fromkeys(user for _, user in reads[id(weight)]))
            found[name] = Factor(name, users, summed.pop() if len(summed) == 1 else None)
    return found, others


def masks(graph: Graph) -> dict[str, torch.Tensor]:
    """By weight, where it may differ from zero (bool, of the weight's shape); of tied names the first.

    Empty for a graph without the property "sparse". A weight without zeros, and one that is zero as a whole (as the
    last layer of a branch may be initialised), has no mask.
    """
    if SPARSE not in graph.properties:
        return {}
    found = {name: graph.weight(name).detach() != 0 for name in factors(graph)[0]}
    return {name: mask for name, mask in found.items() if mask.any() and not mask.all()}


def check_zeros(graph: Graph, expected: Mapping[str, torch.Tensor], where: str) -> None:
    """Raises VerifyError where a sparse graph's weight is no longer zero outside its mask.

    expected  what `masks` gave before; a weight that has another shape since, or is gone, is not looked at
    """
    if SPARSE not in graph.properties:
        return
    weights = graph.weights
    for name, mask in expected.items():
        if name in weights and weights[name].shape == mask.shape:
            filled = int((weights[name].detach()[~mask] != 0).sum())
            if filled:
                what = f"{filled} zeros of the sparse weight '{name}' are no longer zero"
                raise VerifyError(where, what, "a pass that fills zeros drops the property 'sparse'")


def _is_factor(read: fx.Node, user: fx.Node) -> bool:
    if is_op(user, *MATRIX_PRODUCTS):
        return read in _matrices(user)
    if is_op(user, *OTHER_PRODUCTS):
        return True
    if op_name(user) not in SUMMED_DIM:
        return False
    call = arguments(user)
    return read in call.params if hasattr(call, "params") else read is call.weight


def _summed(weight: torch.Tensor, read: fx.Node, user: fx.Node) -> Summed | None:
    if is_op(user, *MATRIX_PRODUCTS):
        dim = weight.ndim - (2 if read is _matrices(user)[1] else 1)
        return Summed(dim, weight.shape[dim])
    if op_name(user) not in SUMMED_DIM:
        return None
    dim = SUMMED_DIM[op_name(user)]
    return Summed(dim, weight.shape[dim] // (arguments(user).groups if is_op(user, *TRANSPOSED_CONVS) else 1))


def _matrices(product: fx.Node) -> list[fx.Node]:
    """The two factors: the last two tensors among the arguments, one before them is added."""
    return [value for value in product.args if isinstance(value, fx.Node)][-2:]
