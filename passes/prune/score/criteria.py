"""How much each group of channels matters: one row per criterion.

A criterion reads places where groups live (dims of weights, outputs of layers) and says what it found there. What is
in the units of its place, such as a magnitude, gives one reading per place; what is an estimate of the change of the
loss adds up over all places to one reading.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import fx

from ....ir.errors import UsageError
from ....ir.ops import arguments
from ...pipeline_text import did_you_mean
from ..groups import Groups
from ..index.relation import Dim
from .layerwise import distance_to_others, lamp
from .slices import Mass, Slice, sums_by_group, sums_by_slice, weight_slices

if TYPE_CHECKING:
    from .evidence import Evidence

Entry = TypeVar("Entry")
# Quantities that take labels: what the loss does when weights change.
DERIVATIVES = frozenset({"gradient", "squared-gradient", "curvature"})


@dataclass(frozen=True)
class Reading:
    """What one place says about the groups in it: the greater, the more important, never negative.

    is_vector  the place is a vector (a bias, a norm), which speaks only for groups that no matrix or filter holds
    """

    groups: np.ndarray
    score: np.ndarray
    is_vector: bool = False


Reader = Callable[[Groups, "Evidence"], Iterable[Reading]]


@dataclass(frozen=True)
class Criterion:
    """evidence: the quantities of `Evidence` that it is made of, which take data; none for weights alone."""

    read: Reader
    evidence: frozenset[str] = frozenset()


def magnitude(mass: Mass, finish: Callable[[np.ndarray], np.ndarray]) -> Reader:
    """The mean mass of a group's entries in each weight, finished."""

    def read(groups: Groups, evidence: "Evidence") -> Iterator[Reading]:
        return (
            Reading(found, finish(mean), is_vector) for found, mean, is_vector in _mean_mass(groups, evidence, mass)
        )

    return read


def _mean_mass(groups: Groups, evidence: "Evidence", mass: Mass) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """For every slice of every weight (its groups, the mean mass of their entries, whether the weight is a vector)."""
    known = {} if evidence.sums is None else evidence.sums
    for name, slices in weight_slices(groups).items():
        weight = groups.index.graph.weight(name)
        key = mass, name, *((part.shape, part.kept) for part in slices)  # whatever groups the indices belong to
        if key not in known:
            known[key] = sums_by_slice(slices, mass, weight)
        for part, sums in zip(slices, known[key], strict=True):
            yield part.groups, part.add_up(sums) / part.entries, weight.ndim == 1


def lamp_shares(groups: Groups, evidence: "Evidence") -> Iterator[Reading]:
    for found, energy, is_vector in _mean_mass(groups, evidence, torch.square):
        yield Reading(found, lamp(energy, groups.family[found]), is_vector)


def geometric_median(groups: Groups, evidence: "Evidence") -> Iterator[Reading]:
    for name, slices in weight_slices(groups).items():
        weight = groups.index.graph.weight(name)
        for part in slices:
            yield Reading(*distance_to_others(weight, part, groups.family), weight.ndim == 1)


def loss_change(quantity: str, mass: Mass, finish: Callable[[np.ndarray], np.ndarray]) -> Reader:
    """The sum of mass(weight, quantity) over all entries that a group owns anywhere, finished."""

    def read(groups: Groups, evidence: "Evidence") -> Iterator[Reading]:
        total, known = np.zeros(groups.count), evidence.of(quantity)
        for name, slices in weight_slices(groups).items():
            weight = groups.index.graph.weight(name)
            if name in known:  # integers have no gradient
                total += sums_by_group(slices, groups.count, mass, weight, known[name])
        yield Reading(np.arange(groups.count), finish(total))

    return read


def batch_norm_scale(groups: Groups, evidence: "Evidence") -> Iterator[Reading]:
    """The mean magnitude of the scales with which one batch norm multiplies a group's channels."""
    scales = [arguments(node).weight for node in groups.index.graph.calls("batch_norm")]
    scales = {id(groups.index.graph.weight(s)): s for s in scales if isinstance(s, fx.Node) and s.op == "get_attr"}
    if not scales:
        advice = "put prune-channels before fold-batch-norm", "or choose another importance, such as l1"
        raise UsageError("importance 'batch-norm'", "the model has no batch norm with a scale", ", ".join(advice))
    for node in scales.values():
        scale = groups.index.graph.weight(node).detach().double().abs().cpu().numpy()
        yield _by_channel(groups, groups.index[node][0], scale)


def mean_activation(groups: Groups, evidence: "Evidence") -> Iterator[Reading]:
    for layer, values in evidence.of("activation").items():
        yield _by_channel(groups, groups.index.channels[layer], values)


def share_of_nonzeros(groups: Groups, evidence: "Evidence") -> Iterator[Reading]:
    """A layer without any zero says nothing: no activation that gives zeros follows it."""
    for layer, zeros in evidence.of("zeros").items():
        if zeros.any():
            yield _by_channel(groups, groups.index.channels[layer], 1 - zeros)


def random_order(groups: Groups, evidence: "Evidence") -> Iterator[Reading]:
    """One number per atom, in [0, 1); a group has that of its first atom."""
    numbers = np.random.default_rng(evidence.seed).random(len(groups.number))
    found, first = np.unique(groups.number, return_index=True)
    inside = found >= 0
    yield Reading(found[inside], numbers[first[inside]])


def _by_channel(groups: Groups, dim: Dim, values: np.ndarray) -> Reading:
    """The mean of one value per channel over the channels of each group."""
    part = Slice("", (len(dim),), (0,), groups.number[dim])
    return Reading(part.groups, part.add_up(values) / part.entries)


def _at_least_zero(change: np.ndarray) -> np.ndarray:
    """Where the loss is expected to fall, removing the group costs nothing."""
    return np.maximum(change, 0.0)


CRITERIA: dict[str, Criterion] = {
    # Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017: the mean magnitude.
    "l1": Criterion(magnitude(torch.abs, np.asarray)),
    # The root mean square magnitude, as He et al., "Soft Filter Pruning", IJCAI 2018.
    "l2": Criterion(magnitude(torch.square, np.sqrt)),
    # Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    "batch-norm": Criterion(batch_norm_scale),
    # Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019: |sum w g|, the change of the
    # loss to first order when all entries of the group are zeroed.
    "taylor": Criterion(loss_change("gradient", torch.mul, np.abs), frozenset({"gradient"})),
    # Theis et al., "Faster Gaze Prediction with Dense Networks and Fisher Pruning", 2018: w^2 E[g^2] / 2.
    "fisher": Criterion(
        loss_change("squared-gradient", lambda w, g2, out: torch.square(w, out=out).mul_(g2).div_(2), np.asarray),
        frozenset({"squared-gradient"}),
    ),
    # LeCun et al., "Optimal Brain Damage", NIPS 1989: w^2 h / 2 with the diagonal h of the Hessian, here estimated
    # with random probes as in Hutchinson, Communications in Statistics 19(2), 1990; Bekas et al., 2007.
    "hessian": Criterion(
        loss_change("curvature", lambda w, c, out: torch.div(c, 2, out=out), _at_least_zero), frozenset({"curvature"})
    ),
    # He et al., "Filter Pruning via Geometric Median", CVPR 2019.
    "geometric-median": Criterion(geometric_median),
    # Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
    "lamp": Criterion(lamp_shares),
    # Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, section
    # 2.2: the mean activation, here of magnitudes.
    "activation": Criterion(mean_activation, frozenset({"activation"})),
    # Hu et al., "Network Trimming", 2016: the average percentage of zeros; what is never zero matters most.
    "apoz": Criterion(share_of_nonzeros, frozenset({"zeros"})),
    # The baseline of Mittal et al., "Recovering from Random Pruning", WACV 2018.
    "random": Criterion(random_order),
}
# What the Context must hold for a criterion: data, and labels with it.
NEEDS: dict[str, frozenset[str]] = {
    name: frozenset({"data"} if entry.evidence else ()) | ({"labels"} if entry.evidence & DERIVATIVES else frozenset())
    for name, entry in CRITERIA.items()
}


def entry_of(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """The entry of a table of names. Raises UsageError for an unknown one."""
    if name not in table:
        hint = did_you_mean(name, table) or f"known: {', '.join(table)}"
        raise UsageError("importance", f"unknown {what} '{name}'", hint)
    return table[name]
