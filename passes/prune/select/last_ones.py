"""No value may be left empty: in each that could be, the most important group stays.

Families keep one group at least, but a value between layers can hold a part of a family only: the half that a split
makes, and that only a pooling reads.
"""

from collections.abc import Iterator

import numpy as np

from ..groups import Groups


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
    sizes = np.array([len(family.groups) for family in groups.families])
    index, seen = groups.index, set()
    for dim in {id(d): d for value in index.values.values() for dims in value for d in dims}.values():
        if index.is_fixed(dim) or not len(dim):
            continue
        owners = groups.number[dim]
        if owners.min() < 0:
            continue
        owners = np.unique(owners)
        key = owners.tobytes()
        if key not in seen and not (np.bincount(groups.family[owners], minlength=len(sizes)) == sizes).any():
            yield owners
        seen.add(key)
