"""Dims that are one number written in several digits: the relation behind views, grouped convs and shuffles."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
from torch import fx

from ....ir.ops import op_name

Dim = np.ndarray  # the atoms of one dim, in order
Dims = list[np.ndarray]  # the dims of one tensor


class NoRule(Exception):
    """This call cannot be followed: its dims are frozen and the reason is reported."""


class Relation:
    """Dims whose positions are mixed-radix numbers over shared factors.

    A grouped conv reads 12 channels as 3 groups of 4: position p is the digit p // 4 of the factor "group" and
    the digit p % 4 of the factor "in". Removing a digit of a factor removes every position that holds it, in every
    dim that has this factor. A tensor stays a box only if each dim loses digits of at most one factor: that one is
    *live*, the others are *dead*. A relation is *open* while some dim still has several live factors.

    sizes         factor -> its number of digits
    views         (dim, its factors, the most significant first)
    dead          factors that never lose a digit
    equal_counts  factors that, once they are live, may lose different digits along the dead factors they are repeated
                  over, as long as it is equally many: group 0 of a grouped conv its inputs 1 and 2, group 1 its 0 and 3
    """

    def __init__(
        self,
        node: fx.Node,
        sizes: dict[str, int],
        views: Iterable[tuple[Dim, Sequence[str]]],
        dead: Iterable[str] = (),
        equal_counts: Iterable[str] = (),
    ):
        self.node = node
        self.equal_counts = frozenset(equal_counts)
        self.sizes = sizes
        self.dead = {*dead, *(f for f, size in sizes.items() if size == 1)}
        self.views = [(dim, tuple(f for f in factors if sizes[f] > 1)) for dim, factors in views]
        self._reported: set[int] = set()
        if any(len(dim) != math.prod(sizes[f] for f in factors) for dim, factors in self.views):
            raise NoRule("its extents are not products of common factors")

    @cached_property
    def atoms(self) -> np.ndarray:
        """All atoms of its dims."""
        return np.concatenate([dim[:1] if dim.strides == (0,) else dim for dim, _ in self.views])

    def live(self, factors: Iterable[str]) -> list[str]:
        return [f for f in factors if f not in self.dead]

    def live_factors(self) -> list[str]:
        return self.live(self.sizes)

    def contested(self) -> list[str]:
        """The live factors that share a dim with another live one."""
        shared = (self.live(factors) for _, factors in self.views)
        return list(dict.fromkeys(f for factors in shared if len(factors) > 1 for f in factors))

    def is_open(self) -> bool:
        return bool(self.contested())

    def compatible(self, one: str, other: str) -> bool:
        """Two factors can both be live when no dim has both."""
        return one == other or not any(one in factors and other in factors for _, factors in self.views)

    def settle_on(self, factor: str) -> None:
        """Make `factor` live: all that share a dim with it are dead."""
        self.dead |= {f for f in self.sizes if not self.compatible(f, factor)}

    def slices(self, factor: str) -> list[np.ndarray]:
        """For each dim that has the factor an array [positions, digits]: column i holds the atoms with digit i."""
        boxes = []
        for dim, factors in self.views:
            if factor in factors:
                box = dim.reshape([self.sizes[f] for f in factors])
                boxes.append(np.moveaxis(box, factors.index(factor), -1).reshape(-1, self.sizes[factor]))
        return boxes

    def edges(self) -> Iterator[tuple[Dim, Dim]]:
        """The ties of a relation that is not open: atoms that hold the same digit of a live factor."""
        for factor in self.live_factors():
            yield from self._digit_edges(factor)

    def rigid_edges(self) -> Iterator[tuple[Dim, Dim]]:
        """The ties that hold even where equal counts are enough: between dims of the same factors."""
        for factor in self.live_factors():
            if factor not in self.equal_counts:
                yield from self._digit_edges(factor)
                continue
            first: dict[tuple[str, ...], Dim] = {}
            for dim, factors in self.views:
                if factor in factors and first.setdefault(factors, dim) is not dim:
                    yield first[factors], dim

    def blocks(self) -> Iterator[np.ndarray]:
        """Arrays [blocks, digits] of atoms, each row of which must lose as many atoms as every other."""
        for factor in self.live_factors():
            if factor in self.equal_counts:
                yield from self.slices(factor)

    def blocks_of(self, factor: str) -> np.ndarray | None:
        """[blocks, digits] of the dim that repeats a live factor with equal counts; None if there is none."""
        if factor not in self.equal_counts or factor in self.dead:
            return None
        return next((rows for rows in self.slices(factor) if len(rows) > 1), None)

    def is_loose(self) -> bool:
        """Equal counts are enough somewhere in it."""
        return any(len(rows) > 1 for rows in self.blocks())

    def _digit_edges(self, factor: str) -> Iterator[tuple[Dim, Dim]]:
        boxes = self.slices(factor)
        for box in boxes:
            if box is not boxes[0] or len(box) > 1:
                yield box.ravel(), np.broadcast_to(boxes[0][0], box.shape).ravel()

    def newly_dead_dims(self) -> list[Dim]:
        """The dims that have no live factor left, each returned once."""
        dead = [i for i, (_, factors) in enumerate(self.views) if i not in self._reported and not self.live(factors)]
        self._reported.update(dead)
        return [self.views[i][0] for i in dead]

    def form(self) -> tuple:
        """Relations of equal form get the same live factors: the blocks of a network are treated alike."""
        views = tuple(factors for _, factors in self.views)
        return op_name(self.node), tuple(self.sizes.items()), views, frozenset(self.dead)
