"""How much each group of channels matters: one short row per criterion."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Criterion:
    """A score for a group from its entries in one weight.

    mass     what one entry contributes
    finish   from the mean contribution of the entries to the score
    """

    mass: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable[[np.ndarray], np.ndarray]


CRITERIA = {
    # Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017: the mean magnitude.
    "l1": Criterion(torch.abs, np.asarray),
    # The root mean square magnitude, as He et al., "Soft Filter Pruning", IJCAI 2018.
    "l2": Criterion(torch.square, np.sqrt),
}


def mass_by_index(criterion: Criterion, weight: torch.Tensor, dim: int) -> np.ndarray:
    """The summed contribution of each index of one dim, in float64."""
    mass = criterion.mass(weight.detach().double())
    others = [d for d in range(weight.ndim) if d != dim]
    return (mass.sum(others) if others else mass).cpu().numpy()
