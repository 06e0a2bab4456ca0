"""Pooling, resizing and reductions."""

import re

from torch import fx

from .....ir.ops import op_name
from ..constraints import Constraints, extents
from ..relation import Dims
from .elementwise import pointwise
from .table import Call, replace_dim, rule

SPATIAL = (
    "max_pool{}d",
    "max_pool{}d_with_indices",
    "avg_pool{}d",
    "lp_pool{}d",
    "adaptive_avg_pool{}d",
    "adaptive_max_pool{}d",
    "upsample_nearest{}d",
    "_upsample_nearest_exact{}d",
    "upsample_linear{}d",
    "upsample_bilinear{}d",
    "upsample_bicubic{}d",
    "upsample_trilinear{}d",
    "_upsample_bilinear{}d_aa",
    "_upsample_bicubic{}d_aa",
)


@rule(*(name.format(rank) for rank in (1, 2, 3) for name in SPATIAL))
def spatial(index: Constraints, node: fx.Node, call: Call) -> list[Dims]:
    """The last dims are resized, the others pass."""
    match = re.search(r"(\d)d", op_name(node))
    assert match
    rank = int(match[1])
    x = index[node.all_input_nodes[0]]
    index.freeze(x[-rank:], "they are spatial positions")
    return [[*x[:-rank], *index.new_frozen(shape[-rank:], "they are spatial positions")] for shape in extents(node)]


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def sample(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """`grid[batch, ..., 2 or 3]` holds coordinates."""
    x, grid = index[call.input], index[call.grid]
    index.freeze([*x[2:], *grid[1:]], "they are spatial positions")
    index.tie(x[0], grid[0])
    return [*x[:2], *grid[1:-1]]


# Without an index the result of these is that of the survivors.
AVERAGES = ("mean", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "max", "min")
# Without an index these change their scale or their meaning.
TOTALS = ("sum", "prod", "any", "all", "argmax", "argmin", "logsumexp", "median")
# With a dim given these also say where: an index into a dim that is cut has no meaning.
POSITIONS = ("max", "min", "median")


@rule(*dict.fromkeys((*AVERAGES, *TOTALS)))
def reduce(index: Constraints, node: fx.Node, call: Call) -> Dims | list[Dims]:
    """The reduced dims become 1 or go. Averages mix them, totals freeze them."""
    x = index[node.all_input_nodes[0]]
    if len(index.tensor_inputs(node)) > 1:  # max(a, b) and min(a, b)
        return pointwise(index, node, call)
    reduced = _reduced(getattr(call, "dim", None), len(x))
    dims = [x[d] for d in sorted(reduced)]
    several = len(extents(node)) > 1
    if op_name(node) in TOTALS:
        index.freeze(dims, f"{op_name(node)} goes over them")
    elif several and op_name(node) in POSITIONS:
        index.freeze(dims, f"{op_name(node)} gives positions among them")
    else:
        index.mix(node, dims)
    keep = getattr(call, "keepdim", False)
    shape = [index.one() if d in reduced else dim for d, dim in enumerate(x) if keep or d not in reduced]
    return [list(shape) for _ in extents(node)] if several else shape


@rule("cosine_similarity")
def similarity(index: Constraints, node: fx.Node, call: Call) -> Dims:
    one, other = index[call.x1], index[call.x2]
    index.align(one, other)
    index.mix(node, [one[call.dim]])
    return replace_dim(one, call.dim % len(one))


def _reduced(dim: int | list[int] | None, rank: int) -> set[int]:
    chosen = [dim] if isinstance(dim, int) else list(dim or range(rank))
    return {d % rank for d in chosen} if rank else set()
