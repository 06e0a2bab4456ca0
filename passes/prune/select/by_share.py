"""The target `ratio`: a share of the channels goes, whatever that saves."""

from math import floor

import numpy as np

from ....ir.errors import UsageError
from ..groups import Family
from .ladders import Ladders
from .order import Sequence


def of_every_layer(ladders: Ladders, families: tuple[Family, ...], ratio: float, where: str) -> np.ndarray:
    """[families]: survivors when the share `ratio` of each family goes, rounded down before lanes.

    Floors and ceilings hold. Raises UsageError where a layer would be left empty.
    """
    survivors = [_of_layer(ladders, number, family, ratio, where) for number, family in enumerate(families)]
    return np.clip(np.array(survivors, np.int64), ladders.bounds.least, ladders.most)


def _of_layer(ladders: Ladders, number: int, family: Family, ratio: float, where: str) -> int:
    size, step, rounding = len(family.groups), int(ladders.steps[number]), ladders.rounding
    left = size - floor(ratio * size + 1e-9)
    rounded = min(size, floor(left / step + 0.5) * step) if left < size else size
    if rounded > 0 or ladders.bounds.is_protected[number]:
        return rounded
    if left > 0 and not rounding.explicit:  # nobody asked for lanes: a narrow layer keeps one vector's worth
        return min(size, step)
    unit = "output channels" if family.indices == (1,) else "prunable groups of channels"
    how = f" rounded to {rounding.lanes}" if rounding.lanes > 1 else ""
    what = f"'{family.layer}' has {size} {unit}, ratio {ratio:g}{how} leaves 0"
    raise UsageError(where, what, "lower 'ratio' or list the layer in 'keep'")


def of_all_layers(ladders: Ladders, sequence: Sequence, ratio: float, where: str) -> np.ndarray:
    """[families]: survivors when the share `ratio` of all groups together is gone, as near as the steps allow.

    Raises UsageError where floors do not let as much go.
    """
    total = int(ladders.sizes.sum())

    def gone(steps: int) -> int:
        return total - int(ladders.survivors(sequence.after(steps)).sum())

    if ratio * total > gone(len(sequence)) + 1:
        most = gone(len(sequence)) / max(total, 1)
        what = f"ratio {ratio:g} cannot be reached: at most {most:.3f} of the channels can go"
        raise UsageError(where, what, "a tenth of every layer stays, and what floors protect", "lower 'ratio'")
    low, high = 0, len(sequence)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if gone(middle) <= ratio * total else (low, middle)
    best = min((low, high), key=lambda steps: abs(gone(steps) - ratio * total))
    return ladders.survivors(sequence.after(best))
