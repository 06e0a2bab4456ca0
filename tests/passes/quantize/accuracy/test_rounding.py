"""Learned rounding, refitting, scales and biases of one layer, against brute force, numpy and scipy."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from planish.passes.quantize.accuracy.refit import RIDGES, refit
from planish.passes.quantize.accuracy.rounding import Budget, Problem, learn_rounding
from planish.passes.quantize.accuracy.rows import Rows


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def identity(rows: torch.Tensor) -> torch.Tensor:
    return rows


def problem_and_rows(groups=1, outputs=1, unknowns=6, count=300, epilogue=identity, seed=0):
    """Inputs that hang together, as those of real layers do: then nearest rounding is far from the best."""
    mixed = normal(groups, unknowns, unknowns, seed=seed) + 2
    inputs = normal(groups, count, unknowns, seed=seed + 1) @ mixed
    weight = normal(groups, outputs, unknowns, seed=seed + 2)
    scale = weight.abs().amax(2, keepdim=True) / 3
    bias = normal(groups, outputs, seed=seed + 3)
    rows = Rows(inputs, inputs @ weight.mT + bias[:, None])
    return Problem(weight, scale, 3, bias, epilogue), rows


def error(problem: Problem, levels: torch.Tensor, rows: Rows) -> float:
    """In float64, without the code under test."""
    weight = (levels * problem.scale).double()
    output = rows.inputs.double() @ weight.mT + problem.bias[:, None].double()
    lacking = problem.epilogue(output) - problem.epilogue(rows.wanted.double())
    return float(lacking.square().sum()) / rows.inputs.shape[1]


@pytest.mark.parametrize("epilogue", [identity, lambda y: y.clamp(0, 6)], ids=["plain", "relu6"])
@pytest.mark.parametrize("seed", range(3))
def test_learned_levels_are_near_the_best_of_all(epilogue, seed):
    problem, rows = problem_and_rows(epilogue=epilogue, seed=10 * seed)
    down = (problem.weight / problem.scale).floor()
    every = [down + torch.tensor(up).view(1, 1, -1) for up in itertools.product((0, 1), repeat=6)]
    every = sorted(error(problem, levels.clamp(-3, 3), rows) for levels in every)
    learned = learn_rounding(problem, rows, Budget(iterations=800))
    # Learning is a relaxation: it has to be among the best 3 of 64, and to beat rounding to nearest.
    assert error(problem, learned, rows) <= every[2] * (1 + 1e-5)
    assert error(problem, learned, rows) <= error(problem, problem.nearest(), rows)


def test_levels_go_down_or_up_and_keep_to_the_range():
    problem, rows = problem_and_rows(groups=3, outputs=4, unknowns=5)
    problem = replace(problem, scale=problem.scale * 0.8)  # now the largest weights are clipped
    levels = learn_rounding(problem, rows, Budget(iterations=100))
    exact = problem.weight / problem.scale
    assert bool(((levels == exact.floor().clamp(-3, 3)) | (levels == exact.ceil().clamp(-3, 3))).all())
    assert bool((levels != problem.nearest()).any())
    assert torch.equal(levels, learn_rounding(problem, rows, Budget(iterations=100)))


def test_weights_on_the_grid_stay():
    problem, rows = problem_and_rows(outputs=3)
    exact = replace(problem, weight=problem.nearest() * problem.scale)
    rows = Rows(rows.inputs, exact.output(exact.weight, rows))
    assert torch.equal(learn_rounding(exact, rows, Budget(iterations=50)), exact.nearest())


@pytest.mark.parametrize("name", ["plain", "relu", "relu6"])
def test_the_best_bias_is_that_of_scipy(name):
    epilogue = {"plain": identity, "relu": torch.relu, "relu6": lambda y: y.clamp(0, 6)}[name]
    problem, rows = problem_and_rows(outputs=2, epilogue=epilogue)
    weight = problem.nearest() * problem.scale
    found = problem.with_best_bias(weight, rows)
    product = (rows.inputs @ weight.mT)[0].double()
    wanted = epilogue(rows.wanted)[0].double()
    for channel in range(2):

        def loss(bias, channel=channel):
            output = epilogue(product[:, channel] + float(bias[0]))
            return float((output - wanted[:, channel]).square().mean())

        start = float(problem.bias[0, channel])
        best = minimize(loss, [start], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12})
        got = loss([float(found.bias[0, channel])])
        # Newton's steps end near the minimum of a function with kinks; without a clip they hit it.
        assert got <= best.fun * (1 + (1e-5 if name == "plain" else 0.02))
        assert got <= loss([start])


def test_refit_without_a_clip_is_ridge_regression():
    """Of numpy's solutions for all ridges it is the one that foretells the held-out rows best."""
    problem, clean = problem_and_rows(groups=2, outputs=3, unknowns=4, count=400)
    noisy = Rows(clean.inputs + normal(*clean.inputs.shape, seed=9), clean.wanted)
    rows, held_out = noisy.slice(0, 300), noisy.slice(300, 400)
    solutions = []
    for ridge in RIDGES:
        weights, biases = zip(*(_ridge(problem, rows, group, ridge) for group in range(2)), strict=True)
        weight, bias = (torch.from_numpy(np.stack(parts)).float() for parts in (weights, biases))
        solutions.append((replace(problem, bias=bias).error(weight, held_out), weight, bias))
    least, weight, bias = min(solutions, key=lambda entry: entry[0])
    found = refit(problem, rows, held_out)
    # The inputs hang together, condition number 1e3 or so: float32 rows leave 1e-3 of a weight.
    torch.testing.assert_close(found.weight, weight, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.bias, bias, rtol=0, atol=5e-3)
    assert least < 0.8 * problem.error(problem.weight, held_out)


def _ridge(problem: Problem, rows: Rows, group: int, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Least squares with rows added that want the change of the weight to be 0."""
    x, y = (value[group].double().numpy() for value in (rows.inputs, rows.wanted))
    old = problem.weight[group].double().numpy()
    count, unknowns = x.shape
    penalty = np.sqrt(ridge * (x**2).mean() * count) * np.eye(unknowns)
    left = np.block([[x, np.ones((count, 1))], [penalty, np.zeros((unknowns, 1))]])
    right = np.vstack([y, penalty @ old.T])
    solved = np.linalg.lstsq(left, right, rcond=None)[0]
    return solved[:-1].T, solved[-1]


def test_refit_behind_a_clip_goes_down():
    problem, clean = problem_and_rows(outputs=3, count=2000, epilogue=lambda y: y.clamp(0, 6))
    noisy = Rows(clean.inputs + normal(*clean.inputs.shape, seed=9), clean.wanted)
    rows, held_out = noisy.slice(0, 1500), noisy.slice(1500, 2000)
    found = refit(problem, rows, held_out)
    only_bias = problem.with_best_bias(problem.weight, rows)
    assert found.error(found.weight, held_out) < 0.95 * only_bias.error(only_bias.weight, held_out)


def test_refit_leaves_a_weight_that_few_rows_would_spoil():
    problem, clean = problem_and_rows(outputs=2, unknowns=12, count=400)
    rows = Rows(clean.inputs[:, :6], clean.wanted[:, :6] + 5 * normal(1, 6, 2, seed=4))
    found = refit(problem, rows, clean.slice(6, 400))
    assert found.error(found.weight, clean.slice(6, 400)) <= 1.001 * problem.with_best_bias(problem.weight, rows).error(
        problem.weight, clean.slice(6, 400)
    )


def test_inputs_that_are_all_zero_are_survived():
    problem, rows = problem_and_rows(groups=2, outputs=3)
    for dead in ((0,), (0, 1)):
        inputs = rows.inputs.clone()
        inputs[list(dead)] = 0
        silent = Rows(inputs, rows.wanted)
        found = refit(problem, silent, silent)
        levels = learn_rounding(found, silent, Budget(iterations=20))
        assert (
            bool(found.weight.isfinite().all()) and bool(found.bias.isfinite().all()) and bool(levels.isfinite().all())
        )


def test_without_room_for_moments_only_the_bias_is_fitted(monkeypatch):
    problem, clean = problem_and_rows(outputs=2, count=200)
    noisy = Rows(clean.inputs + normal(*clean.inputs.shape, seed=9), clean.wanted)
    monkeypatch.setattr("planish.passes.quantize.accuracy.rows.MOMENTS_BYTES", 8)
    found = refit(problem, noisy.slice(0, 150), noisy.slice(150, 200))
    assert torch.equal(found.weight, problem.weight)
    assert not torch.equal(found.bias, problem.bias)


def test_many_inputs_far_from_zero_are_survived():
    """1,500 inputs that hardly vary about their means, from 40 rows."""
    means = torch.linspace(0.1, 7.3, 1500)
    rows = Rows(means + 1e-3 * normal(1, 40, 1500), normal(1, 40, 2, seed=3))
    weight = normal(1, 2, 1500, seed=5)
    problem = Problem(weight, weight.abs().amax(2, keepdim=True) / 7, 7, torch.zeros(1, 2), identity)
    found = refit(problem, rows, rows)
    assert bool(found.weight.isfinite().all())
    only_bias = problem.with_best_bias(weight, rows)
    assert found.error(found.weight, rows) <= only_bias.error(only_bias.weight, rows)
