"""What can be done at one layer of a cut graph. Each reads the data once, and says what it brought."""

from collections.abc import Iterator
from typing import Any

import torch

from ....ir import rewrite
from ....ir.graph import Graph
from ....ir.ops import CONVS, TRANSPOSED_CONVS, arguments, op_name
from ...layers.moments import Moments
from ...layers.patches import channel_last, outputs_of, rows_of
from .comparison import Comparison
from .least_squares import NormalEquations, best_ridge
from .places import Place, shift

RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)  # of the mean variance of a layer's inputs
EQUATIONS_BYTES = 2**30  # what the sums of one layer may take
ROWS_BYTES = 2**27  # what the rows of one step may take


def correct_bias(work: Comparison, place: Place) -> dict[str, Any]:
    """Add to the bias what the output lacks on average over the data and all positions.

    For the layer behind a cut that is the mean of the removed channels times their weights. Where a conv pads with
    zeros, border positions sum over fewer removed inputs: the one number per channel makes the mean over all positions
    exact, which leaves borders a little high and the middle a little low. What earlier layers changed is corrected
    with it (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019).
    """
    lacking, whole = Moments(), Moments()
    for _, y, wanted in work.outputs(place):
        lacking.add(channel_last(wanted - y, channel_axis(place, y)))
        whole.add(channel_last(wanted, channel_axis(place, y)))
    shift(work.graph, place.node, lacking.mean)
    scale = float(whole.variance.sum())
    before, after = float(lacking.mean_square.sum()), float(lacking.variance.sum())
    return {"how": "bias", "error": [_share(before, scale), _share(after, scale)]}


def reconstruct(work: Comparison, place: Place) -> dict[str, Any]:
    """Solve for the weight and bias that bring the output nearest to the wanted one, over all data and positions.

    He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.1, with an
    intercept and a ridge that pulls towards the weight that the layer has. Of the ridges that one is taken with which
    every other sample foretells the rest best: a layer with many inputs and few data keeps nearly all of its weight.
    """
    weight = work.graph.weight(place.weight)
    groups, unknowns, outputs = _extents(work.graph, place)
    halves = (NormalEquations(groups, unknowns, outputs), NormalEquations(groups, unknowns, outputs))
    whole = Moments()
    for half, x, y, wanted in _samples(work, place, groups * unknowns):
        lacking = outputs_of(place.node, wanted - y, weight, groups)
        halves[half].add(rows_of(place.node, x, weight), lacking)
        whole.add(channel_last(wanted, channel_axis(place, wanted)))
    ridge, held_out = best_ridge(*halves, RIDGES)
    equations = halves[0].joined(halves[1])
    change, amount = equations.solve(ridge)
    rewrite.set_weight(work.graph, place.weight, weight + change.reshape(weight.shape).to(weight))
    shift(work.graph, place.node, amount.flatten())
    errors = [_share(e, float(whole.variance.sum())) for e in (equations.error(), equations.error(change, amount))]
    held_out = _share(held_out, float(whole.variance.sum()))
    return {"how": "reconstruct", "error": errors, "held_out": held_out, "ridge": ridge}


def reestimate(work: Comparison, place: Place) -> dict[str, Any]:
    """Give the output of a batch norm the mean and variance that it had before the cut, channel by channel.

    Its running statistics move by as much as those of its input moved on the data. Where the data have the statistics
    that were stored this is the usual re-estimation (Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural
    Network Pruning", ECCV 2020), and where they are few or of another kind their own bias cancels out. A channel that
    does not vary on the data keeps its variance.
    """
    now, before = Moments(), Moments()
    for x, wanted in work.inputs(place):
        now.add(channel_last(x, 1))
        before.add(channel_last(wanted, 1))
    call = arguments(place.node)
    names = [str(node.target) for node in (call.running_mean, call.running_var)]
    mean, variance = (work.graph.weight(name).double().cpu() for name in names)
    varies = (now.variance > 0) & (before.variance > 0)
    ratio = torch.where(varies, now.variance, 1.0) / torch.where(varies, before.variance, 1.0)
    moved = {
        names[0]: now.mean - (before.mean - mean) * ratio.sqrt(),
        names[1]: ((variance + call.eps) * ratio - call.eps).clamp(min=0),
    }
    for name, value in moved.items():
        rewrite.set_weight(work.graph, name, value.to(work.graph.weight(name)))
    return {"how": "batch-norm"}


def why_not_reconstructed(graph: Graph, place: Place) -> str | None:
    """Why least squares cannot be used at a product, None if they can."""
    if op_name(place.node) in TRANSPOSED_CONVS:
        return "outputs of a transposed conv overlap: only its bias is corrected"
    groups, unknowns, outputs = _extents(graph, place)
    taken = 3 * 8 * groups * unknowns * (unknowns + outputs)  # two halves and their sum
    if taken > EQUATIONS_BYTES:
        return f"its equations would take {taken / 2**30:.1f} GiB: only its bias is corrected"
    return None


def channel_axis(place: Place, y: torch.Tensor) -> int:
    """Where the channels of a product's output are; those of a conv come before its spatial dims."""
    spatial = 0 if op_name(place.node) == "linear" else _rank(place) - 2
    return y.ndim - 1 - spatial


def _extents(graph: Graph, place: Place) -> tuple[int, int, int]:
    """(groups, unknowns of one output, outputs of one group)."""
    weight = graph.weight(place.weight)
    groups = arguments(place.node).groups if op_name(place.node) in CONVS else 1
    outputs = weight.shape[0]
    return groups, weight.numel() // outputs, outputs // groups


def _rank(place: Place) -> int:
    """The dims of a product's weight; of as many dims is the output of a conv with a batch."""
    return arguments(place.node).weight.meta["val"].ndim


def _samples(
    work: Comparison, place: Place, width: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(half, input, output, wanted output): samples go to half 0 and 1 in turn, in parts whose rows fit the bound.

    width: the numbers in a row of all groups.
    """
    seen = 0
    for values in work.outputs(place):
        if values[1].ndim < _rank(place):  # no batch
            yield seen % 2, *values
            seen += 1
            continue
        y = values[1]
        positions = y.numel() // max(len(y) * y.shape[channel_axis(place, y)], 1)
        step = max(2, ROWS_BYTES // max(8 * positions * width, 1))
        for parts in zip(*(value.split(step) for value in values), strict=True):
            for first in range(min(2, len(parts[0]))):
                yield (seen + first) % 2, *(part[first::2] for part in parts)
            seen += len(parts[0])


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
