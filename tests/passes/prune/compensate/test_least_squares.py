"""Ridge regression against numpy's lstsq."""

import numpy as np
import pytest
import torch

from planish.passes.prune.compensate.least_squares import NormalEquations, best_ridge


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def filled(groups: int, rows: torch.Tensor, residual: torch.Tensor, parts: int) -> NormalEquations:
    equations = NormalEquations(groups, rows.shape[2], residual.shape[2])
    for part, lacking in zip(rows.chunk(parts, 1), residual.chunk(parts, 1), strict=True):
        equations.add(part, lacking)
    return equations


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
def test_the_solution_is_that_of_lstsq(ridge):
    """A ridge is ordinary least squares with rows added: sqrt(penalty * n) times the unit matrix, wanting 0."""
    rows, residual = normal(2, 50, 6) + 3, normal(2, 50, 4, seed=1) - 2
    change, shift = filled(2, rows, residual, 3).solve(ridge)
    for group in range(2):
        x, y = rows[group].numpy(), residual[group].numpy()
        penalty = ridge * x.var(axis=0).mean() * len(x)
        plain = np.vstack(
            [np.hstack([x, np.ones((50, 1))]), np.hstack([np.sqrt(penalty) * np.eye(6), np.zeros((6, 1))])]
        )
        solved = np.linalg.lstsq(plain, np.vstack([y, np.zeros((6, 4))]), rcond=None)[0]
        # Without a ridge there is still the floor, 1e-10 of mean squares around 10, on variances around 1.
        np.testing.assert_allclose(change[group].T, solved[:6], rtol=0, atol=1e-8)
        np.testing.assert_allclose(shift[group], solved[6], rtol=0, atol=1e-8)


def test_parts_do_not_matter():
    rows, residual = normal(1, 48, 5), normal(1, 48, 2, seed=1)
    one, many = (filled(1, rows, residual, parts).solve(0.01) for parts in (1, 7))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # only the order of float64 sums differs


def test_the_error_is_the_mean_squared_residual():
    rows, residual = normal(2, 30, 4), normal(2, 30, 3, seed=1)
    equations = filled(2, rows, residual, 2)
    assert equations.error() == pytest.approx(float(residual.square().sum()) / 30, rel=1e-12)
    change, shift = equations.solve(0.01)
    left = residual - rows @ change.mT - shift[:, None]
    assert equations.error(change, shift) == pytest.approx(float(left.square().sum()) / 30, rel=1e-10)


def test_the_ridge_is_that_of_twofold_cross_validation():
    """Against the errors of both halves computed row by row."""
    rows = normal(1, 40, 15)
    residual = rows[..., :3] * 0.3 + 0.6 * normal(1, 40, 3, seed=1)
    ridges = (1e-3, 0.1, 1.0, 10.0)
    halves = [slice(0, None, 2), slice(1, None, 2)]
    one, other = (filled(1, rows[:, half], residual[:, half], 1) for half in halves)
    errors = []
    for ridge in ridges:
        total = 0.0
        for fitted, seen in ((one, halves[1]), (other, halves[0])):
            change, shift = fitted.solve(ridge)
            total += float((residual[:, seen] - rows[:, seen] @ change.mT - shift[:, None]).square().sum())
        errors.append(total / 40)
    ridge, error = best_ridge(one, other, ridges)
    assert ridge == ridges[int(np.argmin(errors))] not in (ridges[0], ridges[-1])
    assert error == pytest.approx(min(errors), rel=1e-10)  # from sums instead of rows


def test_a_half_without_rows_takes_the_greatest_ridge():
    one = filled(1, normal(1, 4, 3), normal(1, 4, 2), 1)
    ridge, error = best_ridge(one, NormalEquations(1, 3, 2), (0.1, 10.0))
    assert ridge == 10.0
    assert np.isnan(error)


def test_joined_equations_are_those_of_all_rows():
    rows, residual = normal(2, 20, 4), normal(2, 20, 3, seed=1)
    one, other = (filled(2, rows[:, half], residual[:, half], 1) for half in (slice(0, 9), slice(9, 20)))
    for got, wanted in zip(one.joined(other).solve(0.1), filled(2, rows, residual, 1).solve(0.1), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)  # only the order of float64 sums differs


def test_what_the_rows_do_not_show_is_left_alone():
    """Three rows for eight unknowns, one of which never varies and one is always zero."""
    rows, residual = normal(1, 3, 8), normal(1, 3, 2, seed=1)
    rows[..., 1], rows[..., 2] = 5.0, 0.0
    change, shift = filled(1, rows, residual, 1).solve(1e-6)
    assert change.isfinite().all() and shift.isfinite().all()
    assert change[..., 1:3].abs().max() <= 1e-6
    left = residual - rows @ change.mT - shift[:, None]
    assert left.abs().max() <= 1e-4  # the ridge's share of the change


def test_inputs_that_are_all_constant_give_a_shift_only():
    rows, residual = torch.full((1, 9, 4), 0.1, dtype=torch.float64), normal(1, 9, 2)
    change, shift = filled(1, rows, residual, 2).solve(1e-3)
    assert change.abs().max() <= 1e-5  # rounding, 1e-16, over the floor of 1e-10 times 0.01
    fitted = (change @ rows.mT)[0].mean(1) + shift[0]
    torch.testing.assert_close(fitted, residual[0].mean(0), rtol=1e-12, atol=1e-12)
