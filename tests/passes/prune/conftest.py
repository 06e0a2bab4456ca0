"""A random cut with its proof, for tests that care about rules and not about which channels matter."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from planish.ir.graph import Graph
from planish.passes.prune.cut import cut
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.proof import Snapshot, prove
from planish.passes.prune.rematch import pieces_of, rematch


@dataclass
class RandomCut:
    index: IndexGraph
    groups: Groups
    alive: np.ndarray
    error: float


@pytest.fixture
def cut_at_random() -> Callable[[Graph, int], RandomCut]:
    """Cut a graph in place: about half of each family goes, whatever its importance, at least one group stays."""

    def cut_graph(graph: Graph, seed: int) -> RandomCut:
        whole, index = Snapshot.of(graph), IndexGraph(graph)
        groups, rng = Groups(index), np.random.default_rng(seed)
        pieces = pieces_of(groups)
        groups = rematch(groups, pieces, rng.random(pieces.count))
        alive = np.ones(groups.count, bool)
        for family in groups.families:
            gone = rng.permutation(family.groups)[: (len(family.groups) + 1) // 2]
            alive[gone[: len(family.groups) - 1]] = False
        atoms = groups.alive_atoms(alive)
        cut(index, atoms)
        return RandomCut(index, groups, alive, prove(whole, index, atoms, seed))

    return cut_graph
