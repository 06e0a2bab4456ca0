"""How far families can go: units of families that lose groups together, and the levels of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..groups import Groups
from .bounds import Bounds


@dataclass(frozen=True)
class Rounding:
    """Surviving channels come in multiples of `lanes`. `explicit`: the user asked for it; else a target's lanes did."""

    lanes: int = 1
    explicit: bool = False


class Ladders:
    """Level 0 of a unit is where it starts, each level takes one more group of its largest family.

    The other families of a unit go along, each by the same share. States are arrays [..., units] of levels.

    members   for each unit its families, the largest first
    unit      family -> its unit
    most      family -> the groups it starts with
    last      unit -> its last level
    aligned   for each unit the levels, from 0 up, whose counts fill whole lanes
    """

    def __init__(self, groups: Groups, bounds: Bounds, rounding: Rounding, sets: Sequence[np.ndarray] = ()):
        """sets: families that lose the same share."""
        self.sizes = np.array([len(family.groups) for family in groups.families], np.int64)
        self.bounds, self.rounding = bounds, rounding
        self.steps = np.array([family.step(rounding.lanes) for family in groups.families], np.int64)
        joined = set().union(*(set(s.tolist()) for s in sets))
        alone = [np.array([f]) for f in range(len(self.sizes)) if f not in joined]
        units = [s[np.argsort(-self.sizes[s], kind="stable")] for s in sets] + alone
        self.members = sorted(units, key=lambda families: int(families.min()))
        self.unit = np.zeros(len(self.sizes), int)
        for number, families in enumerate(self.members):
            self.unit[families] = number
        lead = np.array([families[0] for families in self.members], int)
        whole = bounds.most // self.steps * self.steps
        fits = (bounds.most < self.sizes) & (whole >= np.maximum(bounds.least, 1))
        self.most = np.where(fits, whole, bounds.most)  # a ceiling comes in whole lanes too
        self.last = self.most[lead] - bounds.least[lead]
        self.aligned = [self._aligned(number) for number in range(len(self.members))]
        self._base, self._counts = self._tabulate()

    def __len__(self) -> int:
        return len(self.members)

    def survivors(self, levels: np.ndarray) -> np.ndarray:
        """[..., families] from [..., units]."""
        return self._counts[self._base + levels[..., self.unit]]

    def count(self, family: np.ndarray, level: np.ndarray) -> np.ndarray:
        """How many groups of each family are left where its unit is at a level."""
        return self._counts[self._base[family] + level]

    def _aligned(self, number: int) -> np.ndarray:
        lead = self.members[number][0]
        most, step = int(self.most[lead]), int(self.steps[lead])
        least = max(int(self.bounds.least[lead]), step)
        return most - np.array([most, *range((most - 1) // step * step, least - 1, -step)])

    def _tabulate(self) -> tuple[np.ndarray, np.ndarray]:
        """(where a family's counts begin, the counts of all families at all levels of their units)."""
        counts = []
        for family, unit in enumerate(self.unit):
            lead = self.members[unit][0]
            of_lead = int(self.most[lead]) - np.arange(int(self.last[unit]) + 1)
            counts.append(of_lead if family == lead else self._follow(family, int(unit), of_lead))
        lengths = [len(c) for c in counts]
        return np.cumsum([0, *lengths])[:-1], np.concatenate([np.zeros(0, int), *counts])

    def _follow(self, family: int, unit: int, of_lead: np.ndarray) -> np.ndarray:
        """The counts of a family that goes along: the lead's share of its own groups, in whole lanes as the lead's."""
        size, lead = int(self.sizes[family]), self.members[unit][0]
        counts = np.floor(of_lead / self.sizes[lead] * size + 0.5).astype(np.int64)
        step, at = int(self.steps[family]), self.aligned[unit]
        whole = np.maximum(np.floor(counts[at] / step + 0.5).astype(np.int64) * step, min(step, size))
        counts[at] = np.where(counts[at] < size, whole, size)
        return np.clip(counts, self.bounds.least[family], self.most[family])
