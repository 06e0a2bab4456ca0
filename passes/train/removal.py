"""What a later `prune-channels` would remove, and soft pruning: it is zeroed now, and may grow again until then."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ...ir.graph import Graph
from ...ir.ops import TRANSPOSED_CONVS, WEIGHTED_PRODUCTS, arguments, is_op
from ..base import Context
from ..pipeline_text import make, read_options
from ..prune.prune_channels import PruneChannels


def parse_removal(text: str) -> PruneChannels:
    """`macs=0.5, importance=l2` as a `prune-channels`. Raises UsageError for options that it does not have."""
    made = make(PruneChannels.name, read_options(PruneChannels.name, text))
    assert isinstance(made, PruneChannels)
    return made


def removed_entries(graph: Graph, removal: PruneChannels, ctx: Context) -> dict[str, torch.Tensor]:
    """Weight -> bool, of its shape: the entries that this removal would cut. Tried on a copy, proof and all."""
    survivors = removal.run(graph.copy(), ctx).survivors
    weights = graph.weights
    return {name: _removed(kept, weights[name]) for name, kept in survivors.items() if name in weights}


def zero_filters(graph: Graph, removed: Mapping[str, torch.Tensor]) -> int:
    """Zero the filters of removed channels and their biases, in place; returns how many.

    He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018. Only the weights
    that make a channel are zeroed, not those that read it: with both at zero neither would ever get a gradient again.
    """
    count, done = 0, set()
    with torch.no_grad():
        for node in graph.calls(*WEIGHTED_PRODUCTS):
            call = arguments(node)
            if not _is_weight(call.weight) or str(call.weight.target) not in removed:
                continue
            weight = graph.weight(call.weight)
            if id(weight) not in done:
                done.add(id(weight))
                gone, entries = _gone_filters(removed[str(call.weight.target)], node)
                weight.masked_fill_(entries, 0)
                if _is_weight(call.bias):
                    graph.weight(call.bias).masked_fill_(gone, 0)
                count += int(gone.sum())
    return count


def _is_weight(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _removed(kept: Any, weight: torch.Tensor) -> torch.Tensor:
    """True at the entries that a cut does not keep."""
    entries = torch.arange(weight.numel(), device=weight.device).reshape(weight.shape)
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[kept.take(entries).flatten()] = False
    return mask.reshape(weight.shape)


def _gone_filters(removed: torch.Tensor, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """([channels] which output channels lose their whole filter, the entries of these filters)."""
    if is_op(node, *TRANSPOSED_CONVS):  # [groups * in, out, ...]: channel g * out + j has its filter in group g
        by_group = removed.unflatten(0, (arguments(node).groups, -1)).flatten(3)
        gone = by_group.all(3, keepdim=True).all(1, keepdim=True)
        return gone.flatten(), gone.expand_as(by_group).reshape(removed.shape)
    gone = removed.flatten(1).all(1)
    return gone, gone.reshape(-1, *[1] * (removed.ndim - 1)).expand_as(removed)
