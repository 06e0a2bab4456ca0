"""How few and how many groups of each family may stay: floors, ceilings, and layers that are not to be pruned."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from ....ir.errors import UsageError
from ...selectors import select
from ..groups import Groups

# The global rankings leave at least this share of every family: a bottleneck costs more than its score says.
LEAST_SHARE = 0.1
_ROUNDING = 1e-9  # of a share times a count: 0.3 of 10 is 3


@dataclass(frozen=True)
class Share:
    """One entry of `floor` or `ceiling`: `layer1.*:0.5`, or `0.5` for every family that no pattern names."""

    pattern: str
    share: float

    @staticmethod
    def parse(text: str, where: str, option: str) -> "Share":
        pattern, _, number = text.rpartition(":")
        try:
            share = float(number)
        except ValueError:
            share = float("nan")
        if not 0 < share <= 1:
            what = f"cannot read '{text}' in '{option}'"
            raise UsageError(where, what, "expected pattern:share, as 'layer1.*:0.5', with a share in (0, 1]")
        return Share(pattern.strip(), share)


@dataclass(frozen=True)
class Bounds:
    """For each family the least and the most groups that may stay, and whether the user wants that least."""

    least: np.ndarray
    most: np.ndarray
    is_protected: np.ndarray

    @staticmethod
    def of(
        groups: Groups,
        where: str,
        floors: Sequence[Share] = (),
        ceilings: Sequence[Share] = (),
        default_floor: float = 0.0,
        eligible: np.ndarray | None = None,
    ) -> "Bounds":
        """eligible: for each family whether it may lose groups at all.

        Raises UsageError for a pattern without a match, a ceiling on what cannot be pruned, a floor above a ceiling.
        """
        sizes = np.array([len(family.groups) for family in groups.families], np.int64)
        low = _shares(groups, floors, where, "floor")
        high = _shares(groups, ceilings, where, "ceiling")
        most = np.array([max(1, floor(s * n + _ROUNDING)) for s, n in zip(_or(high, 1.0), sizes, strict=True)], int)
        least = [max(1, ceil(s * n - _ROUNDING)) for s, n in zip(_or(low, default_floor), sizes, strict=True)]
        least = np.minimum(np.array(least, int), np.where(np.isnan(low), most, sizes))
        for family, few, many in zip(groups.families, least, most, strict=True):
            if few > many:
                what = f"the floor of '{family.layer}' is {few} groups of channels and its ceiling {many}"
                raise UsageError(where, what, "expected a floor that is not above the ceiling")
        chosen = np.ones(len(sizes), bool) if eligible is None else eligible
        least, most = np.where(chosen, least, sizes), np.where(chosen, most, sizes)
        return Bounds(least, most, ~np.isnan(low) | ~chosen)

    def keeping(self, count: np.ndarray) -> "Bounds":
        """Bounds that leave at least so many groups of each family, whatever is asked."""
        return Bounds(np.maximum(self.least, count), np.maximum(self.most, count), self.is_protected)


def families_of(groups: Groups, weight: str) -> np.ndarray:
    """The families of the channels that a weight makes; of all its dims where it makes none (a bias, a norm)."""
    index = groups.index
    dims = [index.channels[weight]] if weight in index.channels else index.weights[weight]
    owners = np.unique(np.concatenate([groups.number[dim] for dim in dims] or [np.zeros(0, int)]))
    return np.unique(groups.family[owners[owners >= 0]])


def families_named(groups: Groups, pattern: str, where: str, option: str) -> np.ndarray:
    """The families whose channels the layers make that a pattern names. Raises UsageError where it names no weight."""
    names = select(groups.index.graph.weights, [pattern], where, option)
    return np.unique(np.concatenate([families_of(groups, name) for name in names]))


def refuse_frozen(groups: Groups, pattern: str, where: str, option: str) -> None:
    """Raise UsageError: the pattern names weights, none of which can be pruned."""
    name = select(groups.index.graph.weights, [pattern], where, option)[0]
    why = why_whole(groups, name)
    what = f"'{pattern}' in '{option}' names only channels that cannot be pruned"
    raise UsageError(where, what, f"those of '{name}' stay: {why}")


def why_whole(groups: Groups, weight: str) -> str:
    """Why the channels that a weight makes (or all its dims) are not prunable."""
    index = groups.index
    dims = [index.channels[weight]] if weight in index.channels else index.weights[weight]
    reasons = (index.why_frozen(dim) for dim in dims if len(dim))
    return next(filter(None, reasons), "they belong to no parameter")


def _shares(groups: Groups, entries: Sequence[Share], where: str, option: str) -> np.ndarray:
    """[families]: the share asked for, NaN where none is. Of several patterns the strictest holds."""
    strictest = np.fmax if option == "floor" else np.fmin
    named, default = np.full(len(groups.families), np.nan), float("nan")
    for entry in entries:
        if not entry.pattern:
            default = float(strictest(default, entry.share))
            continue
        families = families_named(groups, entry.pattern, where, option)
        if not len(families) and option == "ceiling":
            refuse_frozen(groups, entry.pattern, where, option)
        named[families] = strictest(named[families], entry.share)
    return np.where(np.isnan(named), default, named)


def _or(shares: np.ndarray, default: float) -> list[float]:
    return np.where(np.isnan(shares), default, shares).tolist()
