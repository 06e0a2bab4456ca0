"""Ridge regression over rows that arrive in batches: only sums of products are kept, in float64."""

from collections.abc import Sequence

import torch

FLOOR = 1e-10  # the least penalty, of the mean square of the rows: well above the rounding of float64 sums


class NormalEquations:
    """Sums for `residual ~ rows @ change.T + shift`, for each of several groups at once.

    Memory is groups x unknowns x (unknowns + outputs) numbers of 8 bytes, whatever the number of rows.
    """

    def __init__(self, groups: int, unknowns: int, outputs: int):
        self.count = 0
        self._rows = torch.zeros(groups, unknowns, dtype=torch.float64)
        self._residual = torch.zeros(groups, outputs, dtype=torch.float64)
        self._squares = torch.zeros(groups, unknowns, unknowns, dtype=torch.float64)
        self._products = torch.zeros(groups, unknowns, outputs, dtype=torch.float64)
        self._error = 0.0

    def add(self, rows: torch.Tensor, residual: torch.Tensor) -> None:
        """rows [groups, n, unknowns], residual [groups, n, outputs]."""
        rows, residual = rows.double(), residual.double()
        self.count += rows.shape[1]
        self._rows += rows.sum(1).cpu()
        self._residual += residual.sum(1).cpu()
        self._squares += (rows.mT @ rows).cpu()
        self._products += (rows.mT @ residual).cpu()
        self._error += float(residual.square().sum())

    def joined(self, other: "NormalEquations") -> "NormalEquations":
        """The equations of the rows of both."""
        result = NormalEquations(*self._products.shape)
        for name, value in vars(self).items():
            setattr(result, name, value + getattr(other, name))
        return result

    def solve(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(change [groups, outputs, unknowns], shift [groups, outputs]) with the least squared error.

        ridge  the penalty on the change, in units of the mean variance of the rows. The shift is not penalised: the
               mean error is 0 whatever the ridge.

        The ridge leaves alone what the rows do not show: fewer rows than unknowns, an input that never varies.
        """
        mean, residual = self._rows / self.count, self._residual / self.count
        covariance = self._squares / self.count - mean[:, :, None] * mean[:, None, :]
        products = self._products / self.count - mean[:, :, None] * residual[:, None, :]
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        # What is left of the variance of inputs that never vary is rounding, in proportion to their squares.
        floor = FLOOR * self._squares.diagonal(dim1=1, dim2=2).mean(1) / self.count + torch.finfo(torch.float64).tiny
        diagonal += torch.maximum(ridge * diagonal.mean(1), floor)[:, None]
        change = torch.cholesky_solve(products, torch.linalg.cholesky(covariance)).mT
        return change, residual - (change @ mean[:, :, None])[..., 0]

    def error(self, change: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> float:
        """The squared error of a row summed over all outputs, on average over the rows; of no change without one."""
        if change is None or shift is None:
            return self._error / self.count
        explained = 2 * (change.mT * self._products).sum() + 2 * (shift * self._residual).sum()
        fitted = ((change @ self._squares) * change).sum() + self.count * shift.square().sum()
        fitted += 2 * (shift * (change @ self._rows[:, :, None])[..., 0]).sum()
        return max(0.0, float(self._error - explained + fitted)) / self.count


def best_ridge(one: NormalEquations, other: NormalEquations, ridges: Sequence[float]) -> tuple[float, float]:
    """The ridge with which the solution of each half of the rows is best on the other half, and its mean error there.

    Twofold cross-validation, from the sums alone. Where a half has no rows: the greatest ridge and a NaN.
    """
    if not (one.count and other.count):
        return max(ridges), float("nan")
    halves, count = ((one, other), (other, one)), one.count + other.count
    errors = {
        ridge: sum(seen.error(*fitted.solve(ridge)) * seen.count for fitted, seen in halves) / count for ridge in ridges
    }
    ridge = min(errors, key=errors.__getitem__)
    return ridge, errors[ridge]
