"""What a cut leaves of every weight: enough to thin anything of the weight's shape, such as an optimizer's momentum."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ...ir.graph import named_tensors
from .index.index_graph import IndexGraph
from .index.relation import Dim, Dims

# Entries of which the rows are taken at a time: small enough to stay in a core's cache until the other dims are cut.
BLOCK = 1 << 17


@dataclass(frozen=True)
class Kept:
    """The surviving indices of one weight.

    dims    for each dim the surviving indices, None where all survive
    blocks  [blocks, survivors]: the surviving indices of dim 1 in each of as many blocks of dim 0, for a grouped conv
            whose groups lose different input channels; dim 1 of `dims` is None then
    """

    dims: tuple[np.ndarray | None, ...]
    blocks: np.ndarray | None = None

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """The surviving part of a tensor of the weight's shape, as a new tensor without gradient history."""
        chosen = {d: torch.from_numpy(i).to(tensor.device) for d, i in enumerate(self.dims) if i is not None}
        rows = chosen.pop(0, None)
        if rows is None or not chosen:
            result = _select(tensor.detach(), chosen if rows is None else {0: rows})
        else:  # a block of rows at a time: all of them, before their other dims are cut, can be as large as the weight
            step = max(1, BLOCK * len(tensor) // max(tensor.numel(), 1))
            shape = [len(rows), *(len(chosen[d]) if d in chosen else n for d, n in enumerate(tensor.shape) if d)]
            result = tensor.new_empty(shape, requires_grad=False)
            for start in range(0, len(rows), step):
                part = {0: rows[start : start + step], **chosen}
                _select(tensor.detach(), part, out=result[start : start + step])
        if self.blocks is None:
            return result
        parts = result.unflatten(0, (len(self.blocks), -1)).unbind()
        columns = torch.from_numpy(self.blocks).to(result.device)
        return torch.cat([part.index_select(1, indices) for part, indices in zip(parts, columns, strict=True)])


def _select(tensor: torch.Tensor, chosen: dict[int, torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
    """These indices of these dims; into `out`, which is then the result, where one is given."""
    for place, (position, indices) in enumerate(chosen.items(), 1):
        tensor = torch.index_select(tensor, position, indices, out=out if place == len(chosen) else None)
    return tensor


class Survivors(Mapping[str, Kept]):
    """The weights that a cut makes smaller, by name (tied names included)."""

    def __init__(self, kept: dict[str, Kept] | None = None):
        self._kept = kept or {}

    @staticmethod
    def of(index: IndexGraph, alive: np.ndarray) -> "Survivors":
        """alive: for every atom of the index graph whether it survives."""
        weights = index.graph.weights
        found = {
            id(weights[name]): _kept(dims, index.blocked.get(name), alive)
            for name, dims in index.weights.items()
            if name in weights
        }
        smaller = {key: kept for key, kept in found.items() if kept.blocks is not None or any_cut(kept)}
        names = named_tensors(index.graph.module).items()  # tied names, of which the graph reads one
        return Survivors({name: smaller[id(tensor)] for name, tensor in names if id(tensor) in smaller})

    def take(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The surviving part of a tensor that has the shape which the weight `name` had before the cut."""
        return self._kept[name].take(tensor) if name in self._kept else tensor

    def __getitem__(self, name: str) -> Kept:
        return self._kept[name]

    def __iter__(self):
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def any_cut(kept: Kept) -> bool:
    return any(indices is not None for indices in kept.dims)


def thin(tensor: torch.Tensor, dims: Dims, alive: np.ndarray) -> torch.Tensor:
    """The part of a value that survives, dim by dim, as a new tensor without gradient history."""
    return Kept(tuple(_surviving(dim, alive) for dim in dims)).take(tensor)


def _kept(dims: Dims, blocks: np.ndarray | None, alive: np.ndarray) -> Kept:
    chosen = [_surviving(dim, alive) for dim in dims]
    if blocks is None or alive[blocks].all():
        return Kept(tuple(chosen))
    chosen[1] = None
    columns = np.nonzero(alive[blocks])[1]
    return Kept(tuple(chosen), columns.reshape(len(blocks), -1))


def _surviving(dim: Dim, alive: np.ndarray) -> np.ndarray | None:
    if dim.strides == (0,) and len(dim) and alive[dim[0]]:  # one atom for all indices
        return None
    mask = alive[dim]
    return None if mask.all() else np.flatnonzero(mask)
