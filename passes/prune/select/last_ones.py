"""No value may be left empty: in each that could be, the most important group stays.

Families keep one group at least, but a value between layers can hold a part of a family only: the half that a split
makes, and that only a pooling reads.
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array

from ..groups import Groups
from ..index.relation import Dim


def last_ones(groups: Groups, scores: np.ndarray) -> np.ndarray:
    """[groups]: those that stay so that every value keeps an index of each dim. As few as a greedy choice finds.

    scores: the importance of every group
    """
    kept = np.zeros(groups.count, bool)
    for owners in sorted(_parts_of_families(groups), key=len):
        if not kept[owners].any():
            kept[owners[int(np.argmax(scores[owners]))]] = True
    return kept


def _parts_of_families(groups: Groups) -> Iterator[np.ndarray]:
    """The groups of every dim that all its atoms could leave without a whole family going."""
    index = groups.index
    named = {id(d): d for value in index.values.values() for dims in value for d in dims if len(d)}.values()
    distinct: dict[bytes, Dim] = {}  # most values have the channels of another one
    for dim in named:
        if not index.is_fixed(dim) and (owners := groups.number[dim]).min() >= 0:
            distinct.setdefault(owners.tobytes(), dim)
    dims = list(distinct.values())
    table = groups.incidence(dims)
    row = np.repeat(np.arange(len(dims)), np.diff(table.indptr))
    held = csr_array((np.ones(len(row), int), (row, groups.family[table.indices])), (len(dims), len(groups.families)))
    sizes = np.array([len(family.groups) for family in groups.families], int)
    holds_whole = np.zeros(len(dims), bool)
    holds_whole[np.repeat(np.arange(len(dims)), np.diff(held.indptr))[held.data == sizes[held.indices]]] = True
    for number in np.flatnonzero(~holds_whole):
        yield table.indices[table.indptr[number] : table.indptr[number + 1]]
