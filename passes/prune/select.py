"""Which groups go: from scores and a target to the groups that survive.

Within a family the least important groups go first, ties by index. What differs is how many go in each family:
`layer` thins all families by the same share; `global` removes what does the least damage for what it saves. Damage is
the group's share of the squared importance that its family has left (LAMP: Lee et al., "Layer-adaptive Sparsity for the
Magnitude-based Pruning", ICLR 2021), so it needs no comparison of scores between layers and grows as a layer thins.
Either way removal is one fixed sequence of steps, and a target is a place in it, found by bisection.
"""

from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from ...ir.errors import UsageError
from .budget import MacCounter
from .groups import Family, Groups

PASS = "prune-channels"
TOLERANCE = 0.005
# The global ranking leaves at least this share of every family: a bottleneck costs more than its score says.
LEAST_SHARE = 0.1
# The last correction of a MACs target: so many rungs up or down, so many pairs of moves counted exactly.
REACH = 3
PAIRS = 64


@dataclass(frozen=True)
class Rounding:
    """Surviving channels come in multiples of `lanes`. `explicit`: the user asked for it."""

    lanes: int = 1
    explicit: bool = False


class Selector:
    """Families with their groups in the order of removal, and the sequence of removal steps.

    scores   importance by group
    scope    "layer" or "global"
    savings  by family, what one of its groups saves in the unit of the target; 1 each when not given
    """

    def __init__(
        self, groups: Groups, scores: np.ndarray, scope: str, rounding: Rounding, savings: np.ndarray | None = None
    ):
        self.groups, self.rounding, self.scope = groups, rounding, scope
        self.sizes = np.array([len(f.groups) for f in groups.families], dtype=int)
        self.steps = [family.step(rounding.lanes) for family in groups.families]
        self.rank = np.zeros(groups.count, int)
        self._savings = np.ones(len(self.sizes)) if savings is None else savings
        self._damage: list[np.ndarray] = []
        for family in groups.families:
            own = scores[family.groups]
            order = np.argsort(own, kind="stable")
            self.rank[family.groups[order]] = np.arange(len(order))
            self._damage.append(damage(own[order]))
        self.rungs = [self._rungs(number) for number in range(len(self.sizes))]
        self._sequence = self._make_sequence()

    def alive(self, survivors: np.ndarray) -> np.ndarray:
        """For every group whether it survives, from the number of survivors of each family."""
        return self.rank >= (self.sizes - survivors)[self.groups.family]

    def _rungs(self, number: int) -> list[int]:
        """The numbers of survivors that a family may have, from all of them down."""
        size, step = int(self.sizes[number]), self.steps[number]
        least = ceil(LEAST_SHARE * size) if self.scope == "global" else 1
        return [size, *range((size - 1) // step * step, max(least, step) - 1, -step)]

    def _make_sequence(self) -> tuple[np.ndarray, np.ndarray]:
        """(family, survivors) of every removal step, in order."""
        steps = [(f, count) for f, rungs in enumerate(self.rungs) for count in rungs[1:]]
        families, counts = np.array(steps, dtype=int).reshape(-1, 2).T
        removed = self.sizes[families] - counts
        if self.scope == "layer":
            key = removed / np.maximum(self.sizes[families], 1)
        else:
            harm = np.array([self._damage[f][r - 1] for f, r in zip(families, removed, strict=True)])
            saved = self._savings[families]
            key = np.divide(harm, saved, out=np.full(len(harm), np.inf), where=saved > 0)
        order = np.lexsort((removed, families, key))
        return families[order], counts[order]

    def after(self, number: int) -> np.ndarray:
        """Survivors of each family after the first `number` removal steps."""
        survivors = self.sizes.copy()
        families, counts = self._sequence
        np.minimum.at(survivors, families[:number], counts[:number])
        return survivors

    def __len__(self) -> int:
        return len(self._sequence[0])


def damage(ascending: np.ndarray) -> np.ndarray:
    """What each group's removal costs its family, scores in the order of removal: its share of the squares left."""
    energy = np.square(ascending)
    left = np.cumsum(energy[::-1])[::-1]
    return np.divide(energy, left, out=np.ones_like(energy), where=left > 0)


def by_ratio(selector: Selector, ratio: float) -> np.ndarray:
    """The surviving groups when the share `ratio` is removed.

    Raises UsageError where a layer would be left empty, or where the global ranking cannot reach the ratio.
    """
    if selector.scope == "global":
        return selector.alive(_global_ratio(selector, ratio))
    families = selector.groups.families
    survivors = [_rounded(f, step, ratio, selector.rounding) for f, step in zip(families, selector.steps, strict=True)]
    return selector.alive(np.array(survivors, dtype=int))


def _rounded(family: Family, step: int, ratio: float, rounding: Rounding) -> int:
    size = len(family.groups)
    left = size - floor(ratio * size + 1e-9)
    rounded = min(size, floor(left / step + 0.5) * step) if left < size else size
    if rounded > 0:
        return rounded
    if left > 0 and not rounding.explicit:  # nobody asked for lanes: a narrow layer keeps one vector's worth
        return min(size, step)
    unit = "output channels" if family.indices == (1,) else "prunable groups of channels"
    how = f" rounded to {rounding.lanes}" if rounding.lanes > 1 else ""
    what = f"'{family.layer}' has {size} {unit}, ratio {ratio:g}{how} leaves 0"
    raise UsageError(PASS, what, "lower 'ratio' or list the layer in 'keep'")


def _global_ratio(selector: Selector, ratio: float) -> np.ndarray:
    total = int(selector.sizes.sum())
    removed = [total - int(selector.after(m).sum()) for m in (0, len(selector))]
    if ratio * total > removed[1] + 1:
        what = f"ratio {ratio:g} cannot be reached: at most {removed[1] / max(total, 1):.3f} of the channels can go"
        raise UsageError(PASS, what, "the global scope leaves a tenth of every layer", "lower 'ratio'")
    return _place(selector, ratio * total, lambda survivors: total - int(survivors.sum()))


def by_macs(selector: Selector, counter: MacCounter, share: float) -> np.ndarray:
    """The surviving groups when the share `share` of all multiply-accumulates is left, as near as steps allow.

    Where the sequence of removal steps jumps over the target, one or two families go a few steps up or down.
    Raises UsageError for a share below what is reachable.
    """
    target = share * counter.full
    least = counter.count(selector.alive(selector.after(len(selector))))
    if target < least * (1 - TOLERANCE):
        what = f"macs {share:g} is below the reachable minimum of {least / max(counter.full, 1):.4f}"
        raise UsageError(PASS, what, "some channels cannot be removed", "raise 'macs'")
    survivors = _place(selector, -target, lambda s: -counter.count(selector.alive(s)))
    return selector.alive(_approach(selector, counter, survivors, target))


def _place(selector: Selector, target: float, measure) -> np.ndarray:
    """The survivors at the place in the sequence where `measure` (which grows along it) is nearest to the target."""
    low, high = 0, len(selector)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(selector.after(middle)) <= target else (low, middle)
    return min((selector.after(m) for m in (low, high)), key=lambda s: abs(measure(s) - target))


def _approach(selector: Selector, counter: MacCounter, survivors: np.ndarray, target: float) -> np.ndarray:
    """Outside the tolerance, move one or two families by a few rungs to what comes nearest.

    Pairs are ranked by the sum of their single effects, and the most promising ones are counted exactly.
    """

    def excess(candidate: np.ndarray) -> float:
        return counter.count(selector.alive(candidate)) - target

    start = excess(survivors)
    if abs(start) <= TOLERANCE * target:
        return survivors
    moves = _moves(selector, survivors)
    candidates = [_moved(survivors, move) for move in moves]
    effect = np.array([excess(candidate) - start for candidate in candidates])
    predicted = np.abs(start + effect[:, None] + effect[None, :])
    for flat in np.argsort(predicted, axis=None, kind="stable")[: 2 * PAIRS]:
        one, other = (moves[i] for i in divmod(int(flat), len(moves)))
        if one[0] < other[0]:
            candidates.append(_moved(survivors, one, other))
    return min([survivors, *candidates], key=lambda candidate: abs(excess(candidate)))


def _moves(selector: Selector, survivors: np.ndarray) -> list[tuple[int, int]]:
    """(family, its new number of survivors) for every family and every rung within reach."""
    found = []
    for number, rungs in enumerate(selector.rungs):
        at = rungs.index(int(survivors[number]))
        near = rungs[max(0, at - REACH) : at + REACH + 1]
        found += [(number, count) for count in near if count != survivors[number]]
    return found


def _moved(survivors: np.ndarray, *moves: tuple[int, int]) -> np.ndarray:
    result = survivors.copy()
    for number, count in moves:
        result[number] = count
    return result
