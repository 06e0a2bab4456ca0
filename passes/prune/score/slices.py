"""The slices of weights that groups own, and sums over them in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch

from ..groups import Groups

# Entries of a weight that are turned into float64 at a time: small enough to stay in a core's cache.
BLOCK = 1 << 16

# mass(*blocks, out=block): entry by entry a function of float64 tensors; `out` may be one of them.
Mass = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Slice:
    """Dims of a weight along which groups own whole slices.

    shape   the view of the weight: its shape, or [blocks, out / blocks, in, ...] of a grouped conv
    kept    the dims of the view whose indices say which group an entry belongs to
    number  [extents of the kept dims]: the group of these indices, or -1
    """

    name: str
    shape: tuple[int, ...]
    kept: tuple[int, ...]
    number: np.ndarray

    @cached_property
    def _owned(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(groups in it, for every index that has a group its position among them, indices of each)."""
        flat = self.number.ravel()
        if len(flat) and flat[0] >= 0 and (flat[1:] > flat[:-1]).all():  # as most layers' channels are numbered
            return flat, np.arange(len(flat)), np.ones(len(flat), int)
        return np.unique(self.number[self.number >= 0], return_inverse=True, return_counts=True)

    @property
    def groups(self) -> np.ndarray:
        """The groups in it, ascending."""
        return self._owned[0]

    @property
    def entries(self) -> np.ndarray:
        """How many entries of the weight each of `groups` owns along these dims."""
        return self._owned[2] * (prod(self.shape) // self.number.size)

    def add_up(self, by_index: np.ndarray) -> np.ndarray:
        """For each of `groups` the sum of values per index of the kept dims."""
        return np.bincount(self._owned[1].ravel(), by_index[self.number >= 0], len(self.groups))

    def spread(self) -> np.ndarray:
        """`number` with an extent of 1 for every dim of the view that is not kept."""
        return self.number.reshape([n if d in self.kept else 1 for d, n in enumerate(self.shape)])


def weight_slices(groups: Groups) -> dict[str, list[Slice]]:
    """Parameter -> its slices. The input channels of a grouped conv are other groups in each block of its outputs."""
    found: dict[str, list[Slice]] = {}
    for name, position, dim in groups.rows:
        shape, blocks = tuple(groups.index.graph.weight(name).shape), groups.index.blocked.get(name)
        number, kept = groups.number[dim], (position,)
        if blocks is not None:
            shape = (len(blocks), shape[0] // len(blocks), *shape[1:])
            number, kept = (number.reshape(shape[:2]), (0, 1)) if position == 0 else (number, (position + 1,))
        found.setdefault(name, []).append(Slice(name, shape, kept, number))
    for name in groups.index.graph.parameters:
        blocks = groups.index.blocked.get(name)
        if blocks is not None and (groups.number[blocks] >= 0).any():
            shape = groups.index.graph.weight(name).shape
            view = (len(blocks), shape[0] // len(blocks), *shape[1:])
            found.setdefault(name, []).append(Slice(name, view, (0, 2), groups.number[blocks]))
    return found


def sums_by_slice(slices: list[Slice], mass: Mass, *tensors: torch.Tensor) -> list[np.ndarray]:
    """For every slice of one weight the sums of `mass(*tensors)` per index of its kept dims.

    tensors: the weight and whatever else has its shape; they arrive in float64, a block of the first dim at a time.
    """
    totals = [np.zeros(part.number.shape) for part in slices]
    for rows, value in _blocks(slices[0].shape, mass, tensors):
        for part, total in zip(slices, totals, strict=True):
            total[rows if 0 in part.kept else ...] += _sum_over_rest(value, part)
    return totals


def sums_by_group(slices: list[Slice], count: int, mass: Mass, *tensors: torch.Tensor) -> np.ndarray:
    """[groups]: the sums of `mass(*tensors)` over all entries of one weight that a group owns.

    An entry that a group owns along two dims, as on the diagonal of a square layer in a residual stream, counts once.
    """
    masks = [not_counted_before(slices, position) for position in range(len(slices))]
    totals = [np.zeros(part.number.shape) for part in slices]
    for rows, value in _blocks(slices[0].shape, mass, tensors):
        for part, mask, total in zip(slices, masks, totals, strict=True):
            own = value if mask is None else value * torch.from_numpy(_rows_of(mask, rows))
            total[rows if 0 in part.kept else ...] += _sum_over_rest(own, part)
    result = np.zeros(count)
    for part, total in zip(slices, totals, strict=True):
        result[part.groups] += part.add_up(total)
    return result


def _blocks(
    shape: tuple[int, ...], mass: Mass, tensors: tuple[torch.Tensor, ...]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows of the view's first dim, the mass of their entries, which the next block overwrites)."""
    views = [tensor.detach().reshape(shape) for tensor in tensors]
    step = min(shape[0], max(1, BLOCK * shape[0] // max(prod(shape), 1)))
    buffers = [torch.empty(step, *shape[1:], dtype=torch.float64) for _ in views]
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        blocks = [b[: rows.stop - start].copy_(view[rows]) for b, view in zip(buffers, views, strict=True)]
        yield rows, mass(*blocks, out=blocks[0])


def _sum_over_rest(value: torch.Tensor, part: Slice) -> np.ndarray:
    """Leading dims first: that is a sum of rows, and leaves little for the strided rest."""
    for dims in (range(part.kept[0]), range(part.kept[0] + 1, value.ndim)):
        rest = [d for d in dims if d not in part.kept]
        value = value.sum(rest, keepdim=True) if rest else value
    return value.numpy().reshape([value.shape[d] for d in part.kept])


def not_counted_before(slices: list[Slice], position: int) -> np.ndarray | None:
    """False for entries whose group owns them along an earlier slice too. None where there are none."""
    part, mask = slices[position], None
    for earlier in slices[:position]:
        if np.isin(part.number[part.number >= 0], earlier.number).any():
            apart = part.spread() != earlier.spread()
            mask = apart if mask is None else mask & apart
    return mask


def _rows_of(mask: np.ndarray, rows: slice) -> np.ndarray:
    return mask[rows] if len(mask) > 1 else mask
