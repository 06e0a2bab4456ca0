"""Scores that compare a group with the others of its layer: LAMP and the geometric median."""

from hashlib import blake2b

import numpy as np
import torch

from ..groups import members
from .slices import BLOCK, Slice


def lamp(energy: np.ndarray, family: np.ndarray) -> np.ndarray:
    """A group's share of the energy (sum of squares) of all groups of its family that have at least as much.

    Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, with groups in place of entries.
    Groups of equal energy get equal shares; one without energy has none.
    """
    result = np.zeros_like(energy)
    for own in members(family):
        values = energy[own]
        ascending = np.sort(values)
        left = np.cumsum(ascending[::-1])[::-1][np.searchsorted(ascending, values)]
        result[own] = np.divide(values, left, out=np.zeros_like(values), where=left > 0)
    return result


def distance_to_others(weight: torch.Tensor, part: Slice, family: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(groups in the slice, mean Euclidean distance of each one's entries to those of the others of its family).

    He et al., "Filter Pruning via Geometric Median for Deep Neural Networks Acceleration", CVPR 2019: a filter near
    the geometric median of its layer has the least sum of distances, and the others can stand in for it. Where a group
    owns several indices, the first of them is compared with the first of the others, and so on.
    family: the family of every group.
    """
    table = _by_index(weight, part)
    flat = part.number.ravel()
    order = np.argsort(flat, kind="stable")[np.count_nonzero(flat < 0) :]
    groups, first, owned = np.unique(flat[order], return_index=True, return_counts=True)
    score = np.zeros(len(groups))
    _, kind = np.unique(np.stack([family[groups], owned]), axis=1, return_inverse=True)
    for alike in members(kind.ravel()):
        indices = order[first[alike][:, None] + np.arange(int(owned[alike[0]]))]
        score[alike] = _mean_distances(table[torch.from_numpy(indices)].flatten(1))
    return groups, score


def _by_index(weight: torch.Tensor, part: Slice) -> torch.Tensor:
    """[indices of the kept dims, entries of each]."""
    rest = [d for d in range(len(part.shape)) if d not in part.kept]
    view = weight.detach().cpu().reshape(part.shape).permute(*part.kept, *rest)
    return view.reshape(part.number.size, -1)


def _mean_distances(rows: torch.Tensor) -> np.ndarray:
    """[rows]: the mean distance of each row to the others.

    Equal rows are one to the computation, and its order is that of their contents: they get the same bits, wherever
    they stand.
    """
    contents = ((row + 0.0).contiguous().view(torch.uint8).numpy() for row in rows)  # -0 is 0
    digests = [blake2b(content.tobytes(), digest_size=16).hexdigest() for content in contents]
    _, first, which, times = np.unique(digests, return_index=True, return_inverse=True, return_counts=True)
    distance = _distances(rows[torch.from_numpy(first)])
    return (distance @ times)[which] / max(len(rows) - 1, 1)


def _distances(rows: torch.Tensor) -> np.ndarray:
    """[rows, rows]: Euclidean distances from one product of matrices in float64, a block of columns at a time."""
    count = len(rows)
    gram = torch.zeros(count, count, dtype=torch.float64)
    step = max(1, BLOCK // max(count, 1))
    for start in range(0, rows.shape[1], step):
        block = rows[:, start : start + step].double()
        block = block - block.mean(0)  # what all share would cancel in the difference below
        gram += block @ block.T
    squares = gram.diagonal()
    distance = (squares[:, None] + squares - 2 * gram).clamp(min=0).sqrt()
    return distance.fill_diagonal_(0).numpy()
