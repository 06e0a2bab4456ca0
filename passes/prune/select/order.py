"""The sequence in which groups go, for each scope. A target is a place in it.

layer       every family loses the same share.
global      first what does the least damage for what it saves. Damage is the group's share of the squared importance
            that its family has left (LAMP: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR
            2021), so it needs no comparison of scores between layers and grows as a layer thins. It is done to every
            weight matrix and filter that the group lives in: a channel of a residual stream is missed by each block.
isomorphic  families of the same structure are ranked together by their scores, and each such class loses the same
            share (Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..groups import Groups, members
from .isomorphism import classes
from .ladders import Ladders
from .quantities import PeakMemory
from .ranking import Ranking

SCOPES = ("layer", "global", "isomorphic")
# The peak of memory moves as layers thin. Each time it is looked at, this share of what can still lower it goes.
PEAK_SHARE = 1 / 16


@dataclass(frozen=True)
class Sequence:
    """Removal steps in order: step i takes the unit `units[i]` to its level `levels[i]`."""

    units: np.ndarray
    levels: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.units)

    def after(self, steps: int) -> np.ndarray:
        """[units]: the levels after so many steps."""
        state = np.zeros(self.width, np.int64)
        np.maximum.at(state, self.units[:steps], self.levels[:steps])
        return state


class Steps:
    """All steps that ladders allow, still unordered.

    Steps in whole lanes come first. Those below one vector's worth, which the lanes of a target forbid as long as there
    is another way, come after all of them; where the user asked for the lanes there are none.
    """

    def __init__(self, ladders: Ladders):
        self.ladders = ladders
        aligned = [levels[1:] for levels in ladders.aligned]
        rest = [np.arange(a[-1] + 1, n + 1) for a, n in zip(ladders.aligned, ladders.last, strict=True)]
        narrow = [] if ladders.rounding.explicit else rest
        self.units = np.concatenate([_numbered(aligned), _numbered(narrow)])
        self.levels = np.concatenate([np.zeros(0, np.int64), *aligned, *narrow])
        self.is_narrow = np.arange(len(self.units)) >= sum(map(len, aligned))

    def sort(self, keys: np.ndarray) -> Sequence:
        order = np.lexsort((self.levels, self.units, keys, self.is_narrow))
        return self.sequence(order)

    def sequence(self, order: np.ndarray) -> Sequence:
        return Sequence(self.units[order], self.levels[order], len(self.ladders))

    def by_member(self) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(steps, the family, how many of its groups are gone after the step), for the first, second, ... members."""
        families = self.ladders.members
        for place in range(max(map(len, families), default=0)):
            member = np.array([f[place] if place < len(f) else -1 for f in families], np.int64)[self.units]
            steps = np.flatnonzero(member >= 0)
            family = member[steps]
            yield steps, family, self.ladders.sizes[family] - self.ladders.count(family, self.levels[steps])


def share_gone(steps: Steps) -> np.ndarray:
    """The key of scope `layer`: the share of its unit that is gone after the step."""
    gone, size = np.zeros(len(steps.units)), np.zeros(len(steps.units))
    for at, family, removed in steps.by_member():
        gone[at] += removed
        size[at] += steps.ladders.sizes[family]
    return gone / np.maximum(size, 1)


def class_share(steps: Steps, ranking: Ranking) -> np.ndarray:
    """The key of scope `isomorphic`: the share of its class that is no more important than the last group to go."""
    place = np.empty(ranking.groups.count)
    scores = np.concatenate([np.zeros(0), *ranking.scores])
    family = np.repeat(np.arange(len(ranking.sizes)), ranking.sizes)
    for together in members(classes(ranking.groups)):
        own = np.flatnonzero(np.isin(family, together))
        place[own[np.argsort(scores[own], kind="stable")]] = (np.arange(len(own)) + 1) / max(len(own), 1)
    return _last_gone(steps, ranking, place, np.mean)


def harm(steps: Steps, ranking: Ranking) -> np.ndarray:
    """What the removal of the step's last group does, by scope `global`: its damage in all layers that it lives in."""
    damages = [count * damage(scores) for count, scores in zip(_layers(ranking.groups), ranking.scores, strict=True)]
    return _last_gone(steps, ranking, np.concatenate([np.zeros(0), *damages]), np.sum)


def _layers(groups: Groups) -> np.ndarray:
    """[families]: in how many matrices and filters each lives; 1 where it is vectors only."""
    count = np.zeros(len(groups.families))
    for name, _, dim in groups.rows:
        if groups.index.graph.weight(name).ndim > 1:
            owners = groups.number[dim]
            count[np.unique(groups.family[owners[owners >= 0]])] += 1
    return np.maximum(count, 1)


def damage(ascending: np.ndarray) -> np.ndarray:
    """What each group's removal costs its family, scores in the order of removal: its share of the squares left."""
    energy = np.square(ascending)
    left = np.cumsum(energy[::-1])[::-1]
    return np.divide(energy, left, out=np.ones_like(energy), where=left > 0)


def per_saving(steps: Steps, harm: np.ndarray, savings: np.ndarray) -> np.ndarray:
    """The key of scope `global`. savings: by family, what one of its groups saves in the unit of the target."""
    saved = np.zeros(len(harm))
    for at, family, _ in steps.by_member():
        saved[at] += savings[family]
    return np.divide(harm, saved, out=np.full(len(harm), np.inf), where=saved > 0)


def lowering_the_peak(steps: Steps, harm: np.ndarray, memory: PeakMemory) -> Sequence:
    """Scope `global` for peak memory: at any time only those go that are in use at the worst moment.

    The moment is looked up again as it moves. Once nothing lowers the peak any further the rest follows by its damage.
    """
    remaining = np.lexsort((steps.levels, steps.units, harm, steps.is_narrow))
    state, chosen = np.zeros(len(steps.ladders), np.int64), []
    while len(remaining):
        keys = per_saving(steps, harm, memory.savings(steps.ladders.survivors(state)))
        helpful = remaining[np.isfinite(keys[remaining])]
        helpful = helpful[steps.is_narrow[helpful] == steps.is_narrow[helpful].min(initial=True)]
        helpful = helpful[np.lexsort((steps.levels[helpful], steps.units[helpful], keys[helpful]))]
        now = helpful[: max(1, int(len(helpful) * PEAK_SHARE))] if len(helpful) else remaining
        np.maximum.at(state, steps.units[now], steps.levels[now])
        chosen.append(now)
        remaining = remaining[~np.isin(remaining, now)]
    return steps.sequence(np.concatenate([np.zeros(0, np.int64), *chosen]))


def _last_gone(steps: Steps, ranking: Ranking, values: np.ndarray, combine) -> np.ndarray:
    """Those of the last groups that each step takes. values: of all groups, in the order of removal by family."""
    columns = np.full((len(steps.units), max(map(len, steps.ladders.members), default=1)), np.nan)
    for place, (at, family, removed) in enumerate(steps.by_member()):
        found = values[np.maximum(ranking.starts[family] + removed - 1, 0)]
        columns[at, place] = np.where(removed > 0, found, 0.0)
    return combine(columns, axis=1, where=~np.isnan(columns))


def _numbered(parts: list[np.ndarray]) -> np.ndarray:
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])
