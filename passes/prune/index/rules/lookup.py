"""Reading by index: embedding tables and advanced indexing."""

import torch
from torch import fx

from ..constraints import Constraints, extents
from ..relation import Dims, NoRule
from .table import Call, refit, replace_dim, rule


@rule("embedding")
def embedding(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """`weight[vocabulary, features]`."""
    vocabulary, features = index[call.weight]
    index.freeze([vocabulary], "they are a vocabulary")
    index.produce(call.weight, features)
    return [*index[call.indices], features]


@rule("meshgrid")
def grid(index: Constraints, node: fx.Node, call: Call) -> list[Dims]:
    for x in call.tensors:
        index.freeze(index[x], "they are positions of a grid")
    return [index.new_frozen(shape, "they are positions of a grid") for shape in extents(node)]


@rule("index")
def advanced_index(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """Indexed dims stay, unless the only index is a constant vector: that renames. The others pass."""
    x = index[call.self]
    at = [d for d, chosen in enumerate(call.indices) if chosen is not None]
    if len(at) == 1 and (positions := index.constant(call.indices[at[0]])) is not None:
        return replace_dim(x, at[0], x[at[0]][positions])
    if any(call.indices[d].meta["val"].dtype in (torch.bool, torch.uint8) for d in at):
        raise NoRule("its index is a mask")
    index.freeze([x[d] for d in at], "they are chosen by an index")
    for d in at:
        index.freeze(index[call.indices[d]], "they number chosen indices")
    passing = [dim for d, dim in enumerate(x) if d not in at]
    (shape,) = extents(node)
    # Indices that stand side by side put their dims in their place, others put them first.
    start = at[0] if at[-1] - at[0] == len(at) - 1 else 0
    chosen = index.new_frozen(shape[start : start + len(shape) - len(passing)], "they number chosen indices")
    return [*passing[:start], *chosen, *passing[start:]]


@refit("index")
def index_by_position(cut, node: fx.Node, call: Call) -> None:
    at = [d for d, chosen in enumerate(call.indices) if chosen is not None]
    if len(at) == 1 and cut.is_cut(cut.dims(call.self)[at[0]]):
        cut.select(node, call.self, at[0], cut.index.constant(call.indices[at[0]]))
