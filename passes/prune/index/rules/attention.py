"""Attention: heads, grouped-query heads and head dims; softmax."""

from torch import fx

from ..constraints import Constraints
from ..relation import Dims
from .table import Call, refit, rule


@rule("scaled_dot_product_attention")
def attention(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """query [.., heads, L, E], key [.., key heads, S, E], value [.., key heads, S, Ev]."""
    query, key, value = index[call.query], index[call.key], index[call.value]
    for q, k, v in zip(query[:-2], key[:-2], value[:-2], strict=True):
        sizes = {"key": len(k), "query": len(q) // len(k)}
        index.relate(node, sizes, (q, ("key", "query")), (k, ("key",)), (v, ("key",)))
        index.heads([q, k])
    index.tie(query[-1], key[-1])
    index.tie(key[-2], value[-2])
    index.freeze([key[-2]], "softmax runs over them")
    if call.attn_mask is not None:
        index.align([*query[:-1], key[-2]], index[call.attn_mask])
    index.contract(node, call.query, -1)
    index.multiply(node, [*query[:-1], key[-2], query[-1]])
    index.multiply(node, [*query[:-1], key[-2], value[-1]])
    return [*query[:-1], value[-1]]


@refit("scaled_dot_product_attention")
def scale(cut, node: fx.Node, call: Call) -> None:
    """The default scale follows the head dim: when that shrinks, the old scale is written down."""
    head_dim = cut.dims(call.query)[-1]
    if call.scale is None and cut.count(head_dim) < len(head_dim):
        cut.set(node, "scale", len(head_dim) ** -0.5)


@rule("softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp", "_softmax", "_log_softmax")
def over_one_dim(index: Constraints, node: fx.Node, call: Call) -> Dims:
    x = index[call.self]
    index.freeze([x[call.dim]] if x else [], "softmax or a running sum goes over them")
    return x
