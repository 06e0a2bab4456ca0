"""A layer's float weight fitted to the inputs that it gets now that the layers before it are quantized."""

from dataclasses import replace

import torch

from .rounding import Problem
from .rows import Rows, second_moments

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean square of a layer's inputs
STEPS = 8  # where a clip follows; without one the first step is exact
ENOUGH = 1e-4  # of the largest weight: steps end when they are smaller
FLOOR = 1e-9  # of the penalty: inputs that are never seen to vary


def refit(problem: Problem, rows: Rows, held_out: Rows) -> Problem:
    """The problem with the weight and bias that give the wanted output best, on the data held out.

    Of the ridges, and the weight as it is, that one is taken which foretells the held-out rows best. Least squares with
    an intercept as in He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
    section 3.1; with a clip behind, the residual is that behind the clip, whose slope is at most 1, so that the steps
    of plain least squares go down. A layer with so many inputs that the equations do not fit gets its bias alone.
    """
    tries = [problem.with_best_bias(problem.weight, rows)]
    products = second_moments(rows)
    if products is not None and bool(products.any()):
        tries += [_solve(problem, rows, products, ridge) for ridge in RIDGES]
    return min(tries, key=lambda found: found.error(found.weight, held_out))


def _solve(problem: Problem, rows: Rows, products: torch.Tensor, ridge: float) -> Problem:
    """Descent by least squares on `output error + ridge * change`, both in mean square. The bias is not penalised.

    products  [groups, unknowns, unknowns], of the inputs. The equations are those of centred inputs, so that they are
              sound however far the inputs' means are from zero: the penalty is well above float64's rounding.
    """
    mean = rows.inputs.mean(1, dtype=torch.float64)[:, :, None]
    size = products.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    penalty = ridge * size + FLOOR * size.mean()
    unit = torch.eye(products.shape[1], dtype=torch.float64)
    factor = torch.linalg.cholesky(products - mean @ mean.mT + penalty * unit)
    wanted, found = problem.epilogue(rows.wanted), problem
    for _ in range(STEPS):
        lacking = wanted - problem.epilogue(found.output(found.weight, rows))
        constant = lacking.mean(1, dtype=torch.float64)
        slope = (rows.inputs.mT @ lacking).double() / len(rows) - mean * constant[:, None]
        slope -= penalty * (found.weight - problem.weight).mT
        change = torch.cholesky_solve(slope, factor).mT
        shift = constant - (change @ mean)[..., 0]
        found = replace(found, weight=found.weight + change.to(found.weight), bias=found.bias + shift.to(found.bias))
        if bool(change.abs().max() <= ENOUGH * found.weight.abs().max()):
            break
    return found.with_best_bias(found.weight, rows)
