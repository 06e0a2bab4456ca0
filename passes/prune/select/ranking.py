"""The order in which the groups of a family go: the least important first, ties by index."""

import numpy as np

from ..groups import Groups


class Ranking:
    """The groups of every family in their order of removal.

    sizes   groups of each family
    rank    group -> its place in its family's order
    scores  for each family the importances in that order
    """

    def __init__(self, groups: Groups, scores: np.ndarray, last: np.ndarray | None = None):
        """last: for every group whether it goes after all others of its family."""
        self.groups = groups
        self.sizes = np.array([len(family.groups) for family in groups.families], dtype=np.int64)
        late = np.zeros(groups.count, bool) if last is None else last
        order = np.lexsort((np.arange(groups.count), scores, late, groups.family))
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.rank = np.empty(groups.count, np.int64)
        self.rank[order] = np.arange(groups.count) - np.repeat(self.starts, self.sizes)
        self.scores = np.split(scores[order], self.starts[1:]) if groups.count else []

    def alive(self, survivors: np.ndarray) -> np.ndarray:
        """For every group whether it survives, from the number of survivors of each family."""
        return self.rank >= (self.sizes - survivors)[self.groups.family]
