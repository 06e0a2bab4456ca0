"""What batch norms remember of each product's output, once they are folded."""

from dataclasses import dataclass

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import WEIGHTED_PRODUCTS, arguments, is_op
from ...base import Context
from ...canonicalize import Canonicalize
from ...fold_batch_norm import FoldBatchNorm
from ...layers.by_group import along, by_group
from .chains import find_pairs

_SAME = 1e-4  # of a channel's largest weight: folding and equalizing round to float32 twice


@dataclass(frozen=True)
class Normal:
    """Mean and variance [channels], float64, of a value that a batch norm yields."""

    mean: torch.Tensor
    variance: torch.Tensor


def of_batch_norm(graph: Graph, norm: fx.Node) -> Normal | None:
    """Of the value of a batch norm in eval form: its bias and its scale, whatever it reads. None without statistics."""
    call = arguments(norm)
    if call.running_var is None or call.training:
        return None
    variance = graph.weight(call.running_var).detach().double()
    share = variance / (variance + call.eps)
    scale = torch.ones_like(variance) if call.weight is None else graph.weight(call.weight).detach().double()
    shift = torch.zeros_like(variance) if call.bias is None else graph.weight(call.bias).detach().double()
    return Normal(shift, scale.square() * share)


def of_products(graph: Graph, original: Graph) -> dict[str, Normal | str]:
    """Of each product whose batch norm is folded, by its weight's name: its output, or why that is not known.

    graph     float, the batch norms of `original` folded, perhaps equalized since
    original  the graph with the batch norms

    The original is folded here and compared: a channel of `graph` that is the original's over a positive factor (which
    is what `equalize` leaves) has its statistics over that factor. Layers that changed in another way since (pruned,
    trained, absorbed) have none.
    """
    folded = original.copy().eval()
    Canonicalize().run(folded, Context())
    norms = {_source_weight(n): of_batch_norm(folded, n) for n in folded.calls("batch_norm")}
    before = {str(n.name) for n in folded.calls("batch_norm")}
    names = {n.name: _source_weight(n) for n in folded.calls("batch_norm")}
    FoldBatchNorm().run(folded, Context())
    gone = {names[name] for name in before - {n.name for n in folded.calls("batch_norm")}}
    wanted = {name: found for name, found in norms.items() if name in gone and found is not None}
    return _compared(graph, folded, {name: found for name, found in wanted.items() if name is not None})


def _source_weight(norm: fx.Node) -> str | None:
    source = arguments(norm).input
    weight = arguments(source).weight if is_op(source, *WEIGHTED_PRODUCTS) else None
    return str(weight.target) if weight is not None and weight.op == "get_attr" else None


def _compared(graph: Graph, folded: Graph, norms: dict[str, Normal]) -> dict[str, Normal | str]:
    """The statistics by weight, over the factors by which channels have changed since."""
    theirs = {str(arguments(p).weight.target): p for p in folded.calls(*WEIGHTED_PRODUCTS)}
    reads = {str(arguments(pair.second).weight.target): pair for pair in find_pairs(folded)[0]}
    factors: dict[str, torch.Tensor] = {}
    found: dict[str, Normal | str] = {}
    for product in (p for p in graph.calls(*WEIGHTED_PRODUCTS) if arguments(p).weight.op == "get_attr"):
        name = str(arguments(product).weight.target)
        if name not in theirs:
            continue
        pair = reads.get(name)
        first = factors.get(str(arguments(pair.first).weight.target)) if pair is not None else None
        entering = first.repeat_interleave(pair.repeat) if first is not None and pair is not None else None
        factor = _factor(graph, product, folded, theirs[name], entering)
        if isinstance(factor, torch.Tensor):
            factors[name] = factor
        if name in norms:
            found[name] = factor if isinstance(factor, str) else _over(norms[name], factor)
    return found


def _over(normal: Normal, factor: torch.Tensor) -> Normal:
    return Normal(normal.mean / factor, normal.variance / factor.square())


def _factor(
    graph: Graph, product: fx.Node, folded: Graph, twin: fx.Node, entering: torch.Tensor | None
) -> torch.Tensor | str:
    """[outputs]: what the folded layer's channels are over, or why they are no multiples.

    entering  [inputs] by what the channels that it reads are over
    """
    changed = "its weights are not those of the original model with its batch norms folded"
    mine, theirs = (g.weight(arguments(p).weight).detach().double() for g, p in ((graph, product), (folded, twin)))
    if mine.shape != theirs.shape:
        return changed
    (mine, _, inputs), (theirs, _, _) = by_group(product, mine), by_group(product, theirs)
    if entering is not None:
        theirs = theirs * along(entering, theirs, inputs)
    dims = (inputs, 3)
    dot, square = (theirs * mine).sum(dims, keepdim=True), mine.square().sum(dims, keepdim=True)
    factor = torch.where(square > 0, dot / torch.where(square > 0, square, 1.0), 1.0)
    flat = factor.reshape(-1)
    if bool((flat <= 0).any()) or bool(((theirs - factor * mine).abs() > _SAME * theirs.abs().amax(dims, True)).any()):
        return changed
    held = [arguments(p).bias for p in (product, twin)]
    biases = [0.0 if b is None else g.weight(b).detach().double() for b, g in zip(held, (graph, folded), strict=True)]
    unequal = torch.as_tensor(biases[0] * flat - biases[1]).abs()
    if bool((unequal > _SAME * torch.as_tensor(biases[1]).abs().clamp(min=_SAME)).any()):
        return "its bias is not that of the original model with its batch norms folded"
    return flat
