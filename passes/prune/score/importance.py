"""The importance of every group: a criterion read in all the weights that the group lives in."""

import numpy as np

from ..groups import Groups
from ..index.relation import Dim
from .criteria import Criterion, mass_by_index

Row = tuple[str, int, Dim]


def importance(groups: Groups, criterion: Criterion) -> np.ndarray:
    """The importance of every group, 1 on average within its family.

    Each weight that a group lives in counts alike: the group's score there over the mean score of its family there.
    Vectors (biases, norms) speak only for groups that no matrix or filter holds.
    """
    matrices = _relative_scores(groups, criterion, [row for row in groups.rows if _rank(groups, row) > 1])
    vectors = _relative_scores(groups, criterion, [row for row in groups.rows if _rank(groups, row) == 1])
    return np.where(np.isnan(matrices), vectors, matrices)


def _rank(groups: Groups, row: Row) -> int:
    return groups.index.graph.weight(row[0]).ndim


def _relative_scores(groups: Groups, criterion: Criterion, rows: list[Row]) -> np.ndarray:
    """Mean over the rows that hold a group; NaN where none does."""
    total, held = np.zeros(groups.count), np.zeros(groups.count)
    for name, position, dim in rows:
        weight = groups.index.graph.weight(name)
        number, mass = groups.number[dim], mass_by_index(criterion, weight, position)
        inside = number >= 0
        members = np.bincount(number[inside], minlength=groups.count)
        present = np.flatnonzero(members)
        entries = members[present] * (weight.numel() // len(dim))
        score = criterion.finish(np.bincount(number[inside], mass[inside], groups.count)[present] / entries)
        family = groups.family[present]
        mean = np.bincount(family, score) / np.maximum(np.bincount(family), 1)
        total[present] += np.divide(score, mean[family], out=np.zeros_like(score), where=mean[family] > 0)
        held[present] += 1
    return np.divide(total, held, out=np.full(groups.count, np.nan), where=held > 0)
