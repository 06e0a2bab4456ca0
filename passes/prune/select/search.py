"""Meeting a target: the place in the sequence of removals, and a few families that go a little further or less far."""

from dataclasses import dataclass

import numpy as np

from .ladders import Ladders
from .order import Sequence
from .targets import TOLERANCE, Targets

# Where there are no more combinations than this, all are looked at.
EXHAUSTIVE = 4096
# How many steps that jump over the target may be left out, and how many more groups may go in their stead.
HELD = 8
EXCESS = 0.1
# The last correction looks at steps this near to the place, and counts so many pairs of them exactly,
REACH = 128
PAIRS = 256
# starting again from the best it finds so many times.
ROUNDS = 4
OFF = np.array([-2, -1, 1, 2])


@dataclass
class Found:
    """The candidates seen so far that come nearest to the target, by the ratio of what remains to what may.

    levels, ratio   the best one; a ratio of 1 is a hit
    below, above    the nearest ratios on either side
    """

    levels: np.ndarray
    ratio: float
    below: float | None = None
    above: float | None = None

    @property
    def is_met(self) -> bool:
        return abs(self.ratio - 1) <= TOLERANCE

    def add(self, levels: np.ndarray, ratios: np.ndarray) -> None:
        """levels [candidates, units]. Of equally near ones the first is kept."""
        low, high = ratios[ratios <= 1], ratios[ratios > 1]
        if len(low):
            self.below = max(float(low.max()), -np.inf if self.below is None else self.below)
        if len(high):
            self.above = min(float(high.min()), np.inf if self.above is None else self.above)
        best = int(np.abs(ratios - 1).argmin())
        if abs(ratios[best] - 1) < abs(self.ratio - 1):
            self.levels, self.ratio = levels[best], float(ratios[best])


class Search:
    """The levels of a sequence's units at which the targets are met as nearly as possible.

    base: levels that are gone already, for the sake of another target.
    """

    def __init__(self, ladders: Ladders, sequence: Sequence, targets: Targets, base: np.ndarray | None = None):
        self.ladders, self.sequence, self.targets = ladders, sequence, targets
        self.base = np.zeros(len(ladders), np.int64) if base is None else base

    def ratio(self, levels: np.ndarray) -> np.ndarray:
        """[...] from [..., units]."""
        return self.targets(self.ladders.survivors(levels))

    def after(self, steps: int, held: dict[int, int] | None = None) -> np.ndarray:
        """The levels after so many steps, with some units held back."""
        levels = np.maximum(self.base, self.sequence.after(steps))
        for unit, level in (held or {}).items():
            levels[unit] = min(level, levels[unit])
        return levels

    def place(self, held: dict[int, int] | None = None) -> int:
        """The least number of steps after which all targets hold; all steps if they never do."""
        low, high = -1, len(self.sequence)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.ratio(self.after(middle, held)) <= 1 else (middle, high)
        return high

    def run(self) -> Found:
        """What meets the targets, or comes nearest; each means is tried only where those before it do not do.

        In whole lanes: the place in the sequence; all combinations, where they are few; leaving out steps that jump
        over the target; moving one or two units by a few steps. Then, where only a target machine asks for the
        lanes, the same with the unit that jumps over the target stopping in between.
        """
        at = self.place()
        levels = np.stack([self.after(at), self.after(max(at - 1, 0))])
        ratios = self.ratio(levels)
        found = Found(levels[0], float(ratios[0]))
        found.add(levels, ratios)
        if found.is_met or (at == 0 and ratios[0] <= 1) or self._all(found):
            return self._off_lanes(found, at)
        self._leave_out(found, split=False)
        if not found.is_met:
            self._approach(found, at, [])
        return self._off_lanes(found, at)

    def _off_lanes(self, found: Found, at: int) -> Found:
        rounding = self.ladders.rounding
        if found.is_met or rounding.explicit or rounding.lanes == 1 or (found.ratio <= 1 and not at):
            return found
        split = self._leave_out(found, split=True)
        if not found.is_met:
            self._approach(found, at, split)
        return found

    def _all(self, found: Found) -> bool:
        """Look at every combination of aligned levels; False where there are too many."""
        options = self.ladders.aligned
        if sum(np.log(len(levels)) for levels in options) > np.log(EXHAUSTIVE):
            return False
        grid = np.stack(np.meshgrid(*options, indexing="ij"), axis=-1).reshape(-1, len(options))
        found.add(grid, self.ratio(grid))
        return True

    def _leave_out(self, found: Found, split: bool) -> list[int]:
        """Hold back the unit whose step jumps over the target and go on with the others; again while one jumps.

        split: it may stop anywhere within its step. Returns the units that were held back.
        """
        held: dict[int, int] = {}
        most = (1 + EXCESS) * self._gone(self.after(self.place()))
        for _ in range(HELD):
            at = self.place(held)
            before, after = self.after(max(at - 1, 0), held), self.after(at, held)
            if self._gone(after) > most:
                break
            candidates = self._within(before, after) if split else np.stack([before, after])
            ratios = self.ratio(candidates)
            found.add(candidates, ratios)
            if found.is_met or at in (0, len(self.sequence)) or ratios[-1] > 1:
                break
            unit = int(self.sequence.units[at - 1])
            held[unit] = int(candidates[ratios > 1][-1][unit])
        return list(held)

    def _gone(self, levels: np.ndarray) -> int:
        """How many groups are gone."""
        return int((self.ladders.sizes - self.ladders.survivors(levels)).sum())

    def _within(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """All states between two that differ in one unit."""
        (unit,) = np.flatnonzero(before != after)[:1] if (before != after).any() else [0]
        levels = np.arange(before[unit], after[unit] + 1)
        return _moved(before, np.full(len(levels), unit), levels)

    def _approach(self, found: Found, at: int, free: list[int]) -> None:
        """Move one or two units at a time to where steps near the place would take them.

        Pairs are ranked by the sum of their single effects, and the most promising ones are counted exactly.
        free: units that may stop at any level
        """
        base = self.after(at)
        for _ in range(ROUNDS):
            units, levels = self._moves(base, at, free)
            if not len(units):
                return
            start, singles = float(self.ratio(base)), _moved(base, units, levels)
            ratios = self.ratio(singles)
            found.add(singles, ratios)
            one, other = _pairs(start, ratios - start, units)
            if len(one):
                pairs = _moved(singles[one], units[other], levels[other])
                found.add(pairs, self.ratio(pairs))
            if found.is_met or np.array_equal(found.levels, base):
                return
            base = found.levels

    def _moves(self, base: np.ndarray, at: int, free: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(units, levels) of single moves: onto steps around the place, and one step on or back.

        Where some units are free to stop at any level, the others may go two groups off theirs.
        """
        window = slice(max(0, at - REACH), at + REACH)
        parts = [np.stack([self.sequence.units[window], self.sequence.levels[window]])]
        for unit in range(len(self.ladders)) if len(self.ladders) <= 2 * REACH else np.unique(parts[0][0]).tolist():
            level = int(base[unit])
            low, high = self._around(unit, level)
            near = np.arange(low, high + 1) if unit in free else np.array([low, high])
            if free and unit not in free:
                near = np.append(near, np.clip(level + OFF, low, high))
            parts.append(np.stack([np.full(len(near), unit), near]))
        moves = np.unique(np.concatenate(parts, axis=1), axis=1)
        moves = moves[:, moves[1] != base[moves[0]]]
        return moves[0], moves[1]

    def _around(self, unit: int, level: int) -> tuple[int, int]:
        """The aligned levels of a unit next to a level on either side."""
        aligned = self.ladders.aligned[unit]
        before = aligned[max(int(np.searchsorted(aligned, level)) - 1, 0)]
        after = aligned[min(int(np.searchsorted(aligned, level, side="right")), len(aligned) - 1)]
        return int(before), int(max(before, after))


def _pairs(start: float, effects: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of moves of different units that are most promising."""
    predicted = np.abs(start - 1 + effects[:, None] + effects[None, :])
    predicted[units[:, None] >= units[None, :]] = np.inf
    count = min(PAIRS, predicted.size)
    best = np.argpartition(predicted, count - 1, axis=None)[:count]
    best = np.sort(best[np.isfinite(predicted.ravel()[best])])
    return best // len(units), best % len(units)


def _moved(base: np.ndarray, units: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """[moves, units]: the states after each of some moves."""
    states = np.array(np.broadcast_to(base, (len(units), base.shape[-1])))
    states[np.arange(len(units)), units] = levels
    return states
