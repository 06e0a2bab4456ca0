"""Equal counts instead of equal indices: the pieces of groups are matched anew by their importance.

Each group of a grouped conv must lose equally many channels, not the same ones. The index graph says which smaller
*pieces* its groups consist of, and which blocks each piece lives in. Pieces that live in the same blocks can take each
other's place, so the least important piece of every block goes into the first group, and so on.
"""

import numpy as np
from scipy.sparse import coo_array

from .groups import Groups, alike
from .index.index_graph import IndexGraph


def pieces_of(groups: Groups) -> Groups:
    """The pieces that the groups consist of, as groups of their own; the groups themselves where none has several."""
    index = groups.index
    if not index.loose:
        return groups
    inside = groups.number >= 0
    number = np.full(len(groups.number), -1, np.int32)
    number[inside] = np.unique(index.pieces.label[inside], return_inverse=True)[1]
    return Groups(index, number)


def rematch(groups: Groups, pieces: Groups, scores: np.ndarray) -> Groups:
    """The groups with their pieces exchanged so that each family has groups as unimportant as possible.

    scores  the importance of every piece; equal ones keep the order of their indices

    Families whose groups do not consist of pieces of the same places stay as they are.
    """
    if pieces is groups:
        return groups
    owner = np.zeros(pieces.count, int)
    inside = pieces.number >= 0
    owner[pieces.number[inside]] = groups.number[inside]
    place = places(groups.index, pieces)
    renamed = owner.copy()
    for family in groups.families:
        table = _by_place(family.groups, owner, place)
        if table is not None:
            ranked = np.take_along_axis(table, np.argsort(scores[table], axis=0, kind="stable"), axis=0)
            renamed[ranked] = family.groups[:, None]
    return Groups(groups.index, np.where(inside, renamed[pieces.number], -1))


def places(index: IndexGraph, pieces: Groups) -> np.ndarray:
    """Piece -> the number of its place: pieces that take as many atoms of the same blocks are in one place."""
    blocks = [row for relation in index.loose for rows in relation.blocks() for row in rows]
    atoms = np.concatenate(blocks)
    block = np.repeat(np.arange(len(blocks)), [len(row) for row in blocks])
    number = pieces.number[atoms]
    inside = number >= 0
    table = coo_array(
        (np.ones(int(inside.sum()), np.int64), (block[inside], number[inside])), shape=(len(blocks), pieces.count)
    )
    return alike(table.tocsc())


def _by_place(groups: np.ndarray, owner: np.ndarray, place: np.ndarray) -> np.ndarray | None:
    """[groups, places]: the piece that each group has in each place; None where groups differ in their places."""
    chosen = np.flatnonzero(np.isin(owner, groups))
    order = chosen[np.lexsort((chosen, place[chosen], owner[chosen]))]
    if len(order) % len(groups):
        return None
    table = order.reshape(len(groups), -1)
    is_sound = (owner[table] == groups[:, None]).all() and (place[table] == place[table[0]]).all()
    return table if is_sound and len(np.unique(place[table[0]])) == table.shape[1] else None
