"""Scores that compare a group with the others of its layer: LAMP and the geometric median."""

from collections.abc import Iterator

import numpy as np
import torch

from ..groups import members
from .slices import Slice

# Entries that are turned into float64 at a time, and rows of a block of the product of matrices.
WIDEST = 1 << 20
PANEL = 256
_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def lamp(energy: np.ndarray, family: np.ndarray) -> np.ndarray:
    """A group's share of the energy (sum of squares) of all groups of its family that have at least as much.

    Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, with groups in place of entries.
    Groups of equal energy get equal shares; one without energy has none.
    """
    result = np.zeros_like(energy)
    _, kind = np.unique(family, return_inverse=True)
    order, size = np.lexsort((energy, kind)), np.bincount(kind)
    start = np.cumsum(size) - size
    for width in np.unique(size):  # families of equal size at once: a row of the table for each
        position = order[start[size == width][:, None] + np.arange(int(width))]
        ascending = energy[position]
        left = np.cumsum(ascending[:, ::-1], axis=1)[:, ::-1]
        left = np.take_along_axis(left, _first_of_equals(ascending), axis=1)
        result[position] = np.divide(ascending, left, out=np.zeros_like(left), where=left > 0)
    return result


def _first_of_equals(ascending: np.ndarray) -> np.ndarray:
    """In every row, for each value the position of the first one equal to it."""
    is_new = np.ones(ascending.shape, bool)
    is_new[:, 1:] = ascending[:, 1:] > ascending[:, :-1]
    return np.maximum.accumulate(np.where(is_new, np.arange(ascending.shape[1]), 0), axis=1)


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
    _, first, which, times = np.unique(_checksums(rows), return_index=True, return_inverse=True, return_counts=True)
    distance = _distances(rows[torch.from_numpy(first)])
    return (distance @ times)[which] / max(len(rows) - 1, 1)


def _checksums(rows: torch.Tensor) -> np.ndarray:
    """A 64-bit sum of the bits of each row times fixed random numbers: exact, so the same wherever a row stands."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(len(rows), dtype=torch.int64)
    for block in _columns(rows):
        bits = (block + 0.0).contiguous().view(_BITS[block.element_size()])  # -0 is 0
        total += (bits * torch.randint(-(1 << 62), 1 << 62, (block.shape[1],), generator=generator)).sum(1)
    return total.numpy()


def _distances(rows: torch.Tensor) -> np.ndarray:
    """[rows, rows]: Euclidean distances from one product of matrices in float64."""
    count = len(rows)
    gram = torch.zeros(count, count, dtype=torch.float64)
    for block in _columns(rows):
        block = block.double()
        block = block - block.mean(0)  # what all share would cancel in the difference below
        for start in range(0, count, PANEL):  # the upper triangle is enough
            gram[start : start + PANEL, start:] += block[start : start + PANEL] @ block[start:].T
    gram = gram.triu()
    gram += gram.triu(1).T
    squares = gram.diagonal().clone()
    distance = gram.mul_(-2).add_(squares).add_(squares[:, None]).clamp_(min=0).sqrt_()
    return distance.fill_diagonal_(0).numpy()


def _columns(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """Blocks of columns that are small enough to be copied."""
    yield from rows.split(max(1, WIDEST // max(len(rows), 1)), dim=1)
