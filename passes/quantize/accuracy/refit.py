"""A layer's float weight fitted to the inputs that it gets now that the layers before it are quantized."""

from dataclasses import replace

import torch

from .rounding import Problem
from .rows import Rows

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean square of a layer's inputs
STEPS = 8  # where a clip follows; without one the first step is exact
FLOOR = 1e-9  # of the penalty: inputs that are never seen to vary


def refit(problem: Problem, rows: Rows, held_out: Rows) -> Problem:
    """The problem with the weight and bias that give the wanted output best, on the data held out.

    Of the ridges, and the weight as it is, that one is taken which foretells the held-out rows best. Least squares with
    an intercept as in He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
    section 3.1; with a clip behind, the residual is that behind the clip, whose slope is at most 1, so that the steps
    of plain least squares go down.
    """
    tries = [problem.with_best_bias(problem.weight, rows)]
    second = (rows.inputs.mT @ rows.inputs).double() / len(rows)
    if bool(second.any()):
        tries += [_solve(problem, rows, second, ridge) for ridge in RIDGES]
    return min(tries, key=lambda found: found.error(found.weight, held_out))


def _solve(problem: Problem, rows: Rows, second: torch.Tensor, ridge: float) -> Problem:
    """Descent by least squares on `output error + ridge * change`, both in mean square."""
    size = second.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    penalty = ridge * size + FLOOR * size.mean()
    factor = torch.linalg.cholesky(second + penalty * torch.eye(second.shape[1], dtype=second.dtype))
    wanted, start = problem.epilogue(rows.wanted), problem.weight
    found = problem.with_best_bias(start, rows)
    for _ in range(STEPS):
        lacking = wanted - problem.epilogue(found.output(found.weight, rows))
        slope = (rows.inputs.mT @ lacking).double() / len(rows) - penalty * (found.weight - start).mT.double()
        step = torch.cholesky_solve(slope, factor).mT
        found = replace(found, weight=found.weight + step.to(start)).with_best_bias(found.weight, rows)
    return found.with_best_bias(found.weight, rows)
