"""One choice for each layer within budgets: an integer programme, solved exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # which loads its parts when they are first used: most compilations need none

# A bound is met to this part by the solver, and exactly by what is returned: it is tightened until it is.
_TIGHTER = (0.0, 2e-6, 1e-4)
_TIE = 1e-9  # of all weight: among choices of equal loss the cheaper one


@dataclass(frozen=True)
class Budget:
    """costs[layer][choice], and what their sum may be."""

    costs: Sequence[Sequence[float]]
    most: float

    def spent(self, choice: Sequence[int]) -> float:
        return sum(costs[at] for costs, at in zip(self.costs, choice, strict=True))

    @property
    def least(self) -> float:
        return sum(map(min, self.costs))


def choose(worth: Sequence[Sequence[float]], budgets: Sequence[Budget]) -> list[int] | None:
    """Per layer the number of its choice, so that the sum of `worth[layer][choice]` is least within all budgets.

    None where no combination is within them. Deterministic: HiGHS with one thread's order, no time limit.
    Source: the multiple-choice knapsack problem, Kellerer, Pferschy and Pisinger, Knapsack problems, 2004, chapter 11.
    """
    if not worth:
        return []
    owner = np.repeat(np.arange(len(worth)), list(map(len, worth)))
    one_each = scipy.optimize.LinearConstraint((owner == np.arange(len(worth))[:, None]).astype(float), 1, 1)
    goal = _flat(worth)
    goal = goal / max(float(np.abs(goal).max()), 1e-300)
    for budget in budgets:
        goal = goal + _TIE * _flat(budget.costs) / max(abs(budget.most), 1e-300)
    for tighter in _TIGHTER:
        limits = [_limit(budget, tighter) for budget in budgets]
        found = scipy.optimize.milp(
            goal,
            constraints=[one_each, *limits],
            bounds=scipy.optimize.Bounds(0, 1),
            integrality=1,
            options={"mip_rel_gap": 0},
        )
        if found.x is None:
            continue
        choice = [int(found.x[owner == layer].argmax()) for layer in range(len(worth))]
        if all(budget.spent(choice) <= budget.most for budget in budgets):
            return choice
    cheapest = [int(np.argmin(costs)) for costs in budgets[0].costs] if budgets else None
    return cheapest if cheapest and all(b.spent(cheapest) <= b.most for b in budgets) else None


def _limit(budget: Budget, tighter: float) -> "scipy.optimize.LinearConstraint":
    costs = _flat(budget.costs)
    size = max(abs(budget.most), float(costs.max()) if budget.most <= 0 else 0.0, 1e-300)
    return scipy.optimize.LinearConstraint(costs / size, ub=(budget.most - tighter * abs(budget.most)) / size)


def _flat(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array([value for row in rows for value in row], float)
