"""Targets together: how near a candidate is to all upper bounds, and the messages where they cannot be met."""

from dataclasses import dataclass

import numpy as np

from ....ir.errors import UsageError
from .quantities import QUANTITIES, Quantity
from .ranking import Ranking

TOLERANCE = 0.005


@dataclass(frozen=True)
class Target:
    """An upper bound: this share of the model's own quantity may remain."""

    name: str
    share: float
    quantity: Quantity

    def reached(self, survivors: np.ndarray) -> np.ndarray:
        """[...]: the share that remains."""
        return self.quantity(survivors) / max(self.quantity.full, 1)


class Targets:
    """Several upper bounds. The one that is nearest to being broken, or is broken most, binds."""

    def __init__(self, targets: list[Target]):
        self.targets = targets

    @staticmethod
    def of(ranking: Ranking, shares: dict[str, float]) -> "Targets":
        """shares: by name (`macs`, `params`, `bytes`, `peak_memory`) what may remain of a quantity, in (0, 1]."""
        return Targets([Target(name, share, QUANTITIES[name](ranking)) for name, share in shares.items()])

    def __call__(self, survivors: np.ndarray) -> np.ndarray:
        """[...] from [..., families]: the greatest ratio of what remains to what may; 1 is a target that is hit."""
        return self.ratios(survivors).max(0)

    def ratios(self, survivors: np.ndarray) -> np.ndarray:
        """[targets, ...]: what remains over what may."""
        return np.stack([target.reached(survivors) / target.share for target in self.targets])

    def that_ask(self) -> "Targets":
        """Those below 1; if there are none, all. The others always hold, and are hit without any removal."""
        return Targets([target for target in self.targets if target.share < 1] or self.targets)

    def binding(self, survivors: np.ndarray) -> Target:
        return self.targets[int(self.ratios(survivors).argmax())]


def dashed(name: str) -> str:
    return name.replace("_", "-")


def refuse_minimum(where: str, target: Target, least: float, causes: list[str]) -> UsageError:
    """The error for a target that even the thinnest model that is allowed does not meet."""
    what = f"{dashed(target.name)} {target.share:g} is below the reachable minimum of {least:.4g}"
    return UsageError(where, what, f"{_listed(causes)} stay", f"raise '{dashed(target.name)}'")


def refuse_gap(where: str, target: Target, below: float | None, above: float | None, lanes: str) -> UsageError:
    """The error for a target between two reachable shares that are both more than the tolerance away."""
    near = [f"{share:.4g}" for share in (below, above) if share is not None]
    what = f"no choice of channels comes within 0.5 % of {dashed(target.name)} {target.share:g}"
    are = "shares are" if len(near) > 1 else "share is"
    return UsageError(where, what, f"the nearest reachable {are} {' and '.join(near)}", lanes)


def _listed(causes: list[str]) -> str:
    return " and ".join([", ".join(causes[:-1]), causes[-1]] if len(causes) > 1 else causes)
