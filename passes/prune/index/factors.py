"""Choosing live factors: from ties, frozen dims and relations to the final components."""

from dataclasses import dataclass

import numpy as np

from .components import FREE, Components, connect
from .relation import Dim, Relation


@dataclass(frozen=True)
class Solution:
    """Components with every relation settled.

    components  what lives and dies together when every dim loses the same digits of its live factor everywhere
    pieces      the finer components where equal counts are enough (the same object where there is no such relation)
    loose       the relations whose pieces may be matched anew
    """

    components: Components
    pieces: Components
    loose: tuple[Relation, ...]


def solve(
    count: int,
    edges: list[tuple[Dim, Dim]],
    frozen: list[tuple[Dim, int]],
    relations: list[Relation],
    heads: list[Dim],
    reason: int,
) -> Solution:
    """The components of `count` atoms once every relation has its live factors.

    frozen   (dim, number of its reason)
    heads    dims that are the batch dims of an attention or a matmul; factors that they hold are preferred
    reason   the number to freeze dims for that are left without a live factor

    A factor that can give no group is dead. What is then still open is decided one form at a time, by the number of
    groups that stay prunable on the components as they are: ties made elsewhere can make a factor worthless.
    """
    solver = _Solver(count, edges, frozen, relations, reason)
    pending = [r for r in relations if not solver.close(r)]
    solver.update()
    news = pending
    while pending:
        for relation in news:
            relation.dead |= {f for f in relation.live_factors() if not groups_of(relation, f, solver.components)}
        still_open = [r for r in pending if not solver.close(r)]
        if len(still_open) == len(pending) and not solver.has_news():
            choose(still_open, solver.components, heads)
        solver.update()
        pending, news = still_open, [r for r in still_open if solver.components.changed_in(r.atoms)]
    return Solution(solver.components, solver.pieces, tuple(r for r in relations if r.is_loose()))


class _Solver:
    def __init__(self, count: int, edges: list, frozen: list, relations: list[Relation], reason: int):
        self.components = self.pieces = Components(count)
        if any(r.is_loose() for r in relations):  # and with fewer live factors never again
            self.pieces = Components(count)
        self.edges, self.rigid, self.frozen, self.reason = list(edges), list(edges), list(frozen), reason

    def close(self, relation: Relation) -> bool:
        """Turn a relation with nothing left to choose into edges. False if it is still open."""
        self.frozen += [(dim, self.reason) for dim in relation.newly_dead_dims()]
        if relation.is_open():
            return False
        self.edges += relation.edges()
        self.rigid += relation.rigid_edges()
        return True

    def has_news(self) -> bool:
        return bool(self.edges or self.frozen)

    def update(self) -> None:
        self.components.merge(self.edges)
        self.components.freeze(self.frozen)
        if self.pieces is not self.components:
            self.pieces.merge(self.rigid)
        self.edges, self.rigid, self.frozen = [], [], []


def groups_of(relation: Relation, factor: str, components: Components) -> int:
    """How many groups stay prunable along a factor if it is live; 0 if it is worthless."""
    size = relation.sizes[factor]
    boxes = [components.label[box] for box in relation.slices(factor)]
    labels, first, position = np.unique(
        np.concatenate([box.ravel() for box in boxes]), return_index=True, return_inverse=True
    )
    digits = np.concatenate([np.tile(np.arange(size), len(box)) for box in boxes])
    is_free = components.reason[labels] == FREE
    if (digits[first][position] == digits).all():  # no component holds two digits: each digit is a group of its own
        return size - len(np.unique(digits[first][~is_free])) if size > 1 else 0
    count, merged = connect(digits, size + position.ravel(), size + len(labels))
    stays = np.zeros(count, bool)
    stays[merged[size:][~is_free]] = True
    return int((~stays).sum()) if count > 1 else 0


def choose(pending: list[Relation], components: Components, heads: list[Dim]) -> None:
    """Settle the first open relation on the factor that leaves the most groups, and all of its form alike.

    Heads go first: removing whole heads keeps every head's own arithmetic as it was.
    """
    first = pending[0]
    is_head = _head_factors(pending, components, heads)
    gain = {f: groups_of(first, f, components) for f in first.live_factors()}

    def worth(factor: str) -> tuple[bool, int]:
        return factor in is_head[id(first)], sum(gain[f] for f in gain if first.compatible(factor, f))

    best = max(first.contested(), key=worth)
    form, as_head = first.form(), best in is_head[id(first)]
    for relation in pending:
        if relation.form() == form and (best in is_head[id(relation)]) == as_head:
            relation.settle_on(best)


def _head_factors(pending: list[Relation], components: Components, heads: list[Dim]) -> dict[int, set[str]]:
    """For each open relation the factors that are heads: every dim that has no other live factor is marked.

    The mark passes through open relations, as from the key heads of a grouped-query attention to its query heads.
    """
    marked = np.zeros(len(components.reason), bool)
    for dim in heads:
        marked[components.label[dim]] = True
    spread = True
    while spread:
        spread = False
        for relation in pending:
            inside = {f for dim, fs in relation.views if marked[components.label[dim]].all() for f in fs}
            for dim, factors in relation.views:
                live = relation.live(factors)
                if len(live) == 1 and live[0] in inside and not marked[components.label[dim]].all():
                    marked[components.label[dim]] = spread = True
    return {id(r): {f for f in r.live_factors() if _is_head(r, f, marked, components)} for r in pending}


def _is_head(relation: Relation, factor: str, marked: np.ndarray, components: Components) -> bool:
    own = [dim for dim, factors in relation.views if relation.live(factors) == [factor]]
    return bool(own) and all(marked[components.label[dim]].all() for dim in own)
