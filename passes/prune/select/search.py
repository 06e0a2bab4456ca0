"""Meeting a target: the place in the sequence of removals, and a few families that go a little further or less far."""

from dataclasses import dataclass

import numpy as np

from .ladders import Ladders
from .order import Sequence
from .targets import TOLERANCE, Targets

# Where there are no more combinations than this, all are looked at.
EXHAUSTIVE = 4096
# The correction looks at the steps this near to the place in the sequence, and counts so many pairs of them exactly,
REACH = 128
PAIRS = 256
# starting again from the best it finds so many times.
ROUNDS = 4


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
            self.below = max(low.max(), -np.inf if self.below is None else self.below)
        if len(high):
            self.above = min(high.min(), np.inf if self.above is None else self.above)
        best = int(np.abs(ratios - 1).argmin())
        if abs(ratios[best] - 1) < abs(self.ratio - 1):
            self.levels, self.ratio = levels[best], float(ratios[best])


class Search:
    """The levels of a sequence's units at which the targets are met as nearly as possible."""

    def __init__(self, ladders: Ladders, sequence: Sequence, targets: Targets):
        self.ladders, self.sequence, self.targets = ladders, sequence, targets

    def ratio(self, levels: np.ndarray) -> np.ndarray:
        return self.targets(self.ladders.survivors(levels))

    def run(self) -> Found:
        """What meets the targets, or comes nearest.

        Where lanes that only a target asks for stand in the way, as few units as possible leave them: those first whose
        steps are nearest to the place.
        """
        at = self.place()
        levels = np.stack([self.sequence.after(steps) for steps in (at, max(at - 1, 0))])
        ratios = self.ratio(levels)
        found = Found(levels[0], float(ratios[0]))
        found.add(levels, ratios)
        if found.is_met or (at == 0 and ratios[0] <= 1):
            return found
        if not self._all(found):
            self._approach(found, at, [])
        if not found.is_met and not self.ladders.rounding.explicit and self.ladders.rounding.lanes > 1:
            self._relax(found, at)
        return found

    def least(self) -> np.ndarray:
        """The levels at which most is gone."""
        return self.sequence.after(len(self.sequence))

    def place(self) -> int:
        """The least number of steps after which all targets hold; all steps if they never do."""
        low, high = -1, len(self.sequence)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.ratio(self.sequence.after(middle)) <= 1 else (middle, high)
        return high

    def _all(self, found: Found) -> bool:
        """Look at every combination of aligned levels; False where there are too many."""
        options = self._options()
        if np.prod([float(len(levels)) for levels in options]) > EXHAUSTIVE:
            return False
        grid = np.stack(np.meshgrid(*options, indexing="ij"), axis=-1).reshape(-1, len(options))
        found.add(grid, self.ratio(grid))
        return True

    def _options(self) -> list[np.ndarray]:
        """The levels of each unit that the sequence goes through."""
        order = np.lexsort((self.sequence.levels, self.sequence.units))
        units, levels = self.sequence.units[order], self.sequence.levels[order]
        parts = np.split(levels, np.searchsorted(units, np.arange(1, len(self.ladders))))
        return [np.concatenate([[0], part]) for part in parts]

    def _relax(self, found: Found, at: int) -> None:
        steps = np.arange(len(self.sequence))
        near = self.sequence.units[np.argsort(np.abs(steps - at + 0.5), kind="stable")]
        units = list(dict.fromkeys(near.tolist()))
        for count in (*range(1, 4), *(4 << n for n in range(len(units).bit_length()))):
            self._approach(found, at, units[:count])
            if found.is_met or count >= len(units):
                return

    def _approach(self, found: Found, at: int, free: list[int]) -> None:
        """Move one or two units at a time to where steps near the place would take them.

        Pairs are ranked by the sum of their single effects, and the most promising ones are counted exactly.
        free: units that may stop at any level
        """
        base = self.sequence.after(at)
        for _ in range(ROUNDS):
            units, levels = self._moves(base, at, free)
            if not len(units):
                return
            start, singles = float(self.ratio(base)), _moved(base, units, levels)
            ratios = self.ratio(singles)
            found.add(singles, ratios)
            one, other = self._pairs(start, ratios - start, units)
            pairs = _moved(singles[one], units[other], levels[other])
            if len(pairs):
                found.add(pairs, self.ratio(pairs))
            if found.is_met or np.array_equal(found.levels, base):
                return
            base = found.levels

    def _moves(self, base: np.ndarray, at: int, free: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(units, levels) of single moves: onto steps around the place, one step back, anywhere for the free units."""
        window = slice(max(0, at - REACH), at + REACH)
        units, levels = self.sequence.units[window], self.sequence.levels[window]
        first = np.unique(units)
        back = self.sequence.after(window.start)[first]
        parts = [np.stack([units, levels]), np.stack([first, back])]
        for unit in free:
            near = self._between(unit, int(base[unit]))
            parts.append(np.stack([np.full(len(near), unit), near]))
        moves = np.unique(np.concatenate(parts, axis=1), axis=1)
        return tuple(moves[:, moves[1] != base[moves[0]]])  # type: ignore[return-value]

    def _between(self, unit: int, level: int) -> np.ndarray:
        """All levels of a unit from the aligned one before to the aligned one after."""
        aligned = self.ladders.aligned[unit]
        low = aligned[np.searchsorted(aligned, level, side="left") - 1] if level > aligned[0] else aligned[0]
        after = np.searchsorted(aligned, level, side="right")
        high = aligned[after] if after < len(aligned) else self.ladders.last[unit]
        return np.arange(low, high + 1)

    def _pairs(self, start: float, effects: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted = np.abs(start - 1 + effects[:, None] + effects[None, :])
        predicted[units[:, None] >= units[None, :]] = np.inf
        count = min(PAIRS, predicted.size)
        best = np.argpartition(predicted, count - 1, axis=None)[:count] if count else np.zeros(0, int)
        best = np.sort(best[np.isfinite(predicted.ravel()[best])])
        return best // len(units), best % len(units)


def _moved(base: np.ndarray, units: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """[moves, units]: the states after each of some moves."""
    states = np.array(np.broadcast_to(base, (len(units), base.shape[-1])))
    states[np.arange(len(units)), units] = levels
    return states
