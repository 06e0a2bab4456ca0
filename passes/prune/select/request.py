"""What is asked of a selection, with layers and patterns turned into families."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ....ir.errors import UsageError
from ...selectors import select
from ..groups import Groups
from .bounds import LEAST_SHARE, Bounds, Share, families_named, families_of, refuse_frozen, why_whole
from .ladders import Rounding

PASS = "prune-channels"


@dataclass(frozen=True)
class Request:
    """What is asked of a selection.

    scope     layer, global or isomorphic
    bounds    how few and how many groups of each family may stay
    ratio     the share of channels that goes, or None
    shares    else by the name of a quantity the share of it that may remain, in (0, 1]
    rounding  the multiples that channels come in
    sets      families that lose the same share
    """

    scope: str
    bounds: Bounds
    ratio: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    rounding: Rounding = field(default_factory=Rounding)
    sets: Sequence[np.ndarray] = ()

    @staticmethod
    def of(
        groups: Groups,
        scope: str,
        *,
        ratio: float | None = None,
        shares: dict[str, float] | None = None,
        rounding: Rounding | None = None,
        floors: Iterable[Share] = (),
        ceilings: Iterable[Share] = (),
        only: Sequence[str] = (),
        together: Sequence[str] = (),
    ) -> "Request":
        """only: patterns; nothing else is pruned. together: each pattern makes a set that loses the same share.

        Raises UsageError for a pattern that matches nothing or nothing that can be pruned, for sets that overlap, and
        where something has to go and nothing can.
        """
        eligible = eligible_families(groups, only)
        default = 0.0 if scope == "layer" else LEAST_SHARE
        bounds = Bounds.of(groups, PASS, list(floors), list(ceilings), default, eligible)
        if ratio is not None or min((shares or {}).values(), default=1.0) < 1:
            refuse_hopeless(groups, bounds)
        sets = _sets(groups, together, eligible)
        return Request(scope, bounds, ratio, dict(shares or {}), rounding or Rounding(), sets)


def eligible_families(groups: Groups, only: Sequence[str]) -> np.ndarray:
    """[families]: whether the patterns let them be pruned; all of them without a pattern."""
    if not only:
        return np.ones(len(groups.families), bool)
    eligible = np.zeros(len(groups.families), bool)
    for name in select(groups.index.graph.weights, only, PASS, "only"):
        eligible[families_of(groups, name)] = True
    if not eligible.any():
        refuse_frozen(groups, only[0], PASS, "only")
    return eligible


def refuse_overlap(names: Iterable[str], keep: Sequence[str], only: Sequence[str]) -> None:
    """Raise UsageError for a weight that `keep` and `only` both name."""
    names = list(names)
    both = set(select(names, keep, PASS, "keep")) & set(select(names, only, PASS, "only"))
    first = next((name for name in names if name in both), None)
    if first is not None:
        raise UsageError(PASS, f"'{first}' is named by 'keep' and by 'only'", "take it out of one of them")


def refuse_hopeless(groups: Groups, bounds: Bounds) -> None:
    """Raise UsageError where a target needs channels to go and none can."""
    if (bounds.least < groups_of(groups)).any():
        return
    what = "no channel of the model can be removed"
    if groups.count:
        raise UsageError(PASS, what, "floors leave every layer whole", "lower 'floor'")
    names = [*groups.index.channels, *groups.index.weights]
    if not names:
        raise UsageError(PASS, what, "it has no weights")
    reason = f"the {len(_made(groups, names[0]))} channels of '{names[0].removesuffix('.weight')}' stay: "
    raise UsageError(PASS, what, reason + why_whole(groups, names[0]))


def groups_of(groups: Groups) -> np.ndarray:
    """[families]: how many groups each has."""
    return np.array([len(family.groups) for family in groups.families], np.int64)


def _made(groups: Groups, name: str) -> np.ndarray:
    return groups.index.channels[name] if name in groups.index.channels else groups.index.weights[name][0]


def _sets(groups: Groups, together: Sequence[str], eligible: np.ndarray) -> list[np.ndarray]:
    sets: list[np.ndarray] = []
    owner: dict[int, str] = {}
    for pattern in together:
        named = families_named(groups, pattern, PASS, "groups")
        if not len(named):
            refuse_frozen(groups, pattern, PASS, "groups")
        for family in named.tolist():
            if owner.setdefault(family, pattern) != pattern:
                what = f"'{pattern}' and '{owner[family]}' in 'groups' both name '{groups.families[family].layer}'"
                raise UsageError(PASS, what, "its channels are one set with those of both", "join the patterns")
        if len(named := named[eligible[named]]):
            sets.append(named)
    return sets
