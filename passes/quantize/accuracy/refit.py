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
        second = _with_intercept(products, rows)
        tries += [_solve(problem, rows, second, ridge) for ridge in RIDGES]
    return min(tries, key=lambda found: found.error(found.weight, held_out))


def _with_intercept(products: torch.Tensor, rows: Rows) -> torch.Tensor:
    """[groups, unknowns + 1, unknowns + 1]: the mean products of a row's numbers, the last of them being 1."""
    mean = rows.inputs.double().mean(1)
    edge = torch.cat([mean, torch.ones_like(mean[:, :1])], 1)
    return torch.cat([torch.cat([products, mean[:, None]], 1), edge[:, :, None]], 2)


def _solve(problem: Problem, rows: Rows, second: torch.Tensor, ridge: float) -> Problem:
    """Descent by least squares on `output error + ridge * change`, both in mean square. The bias is not penalised."""
    size = second.diagonal(dim1=1, dim2=2)[:, :-1].mean(1, keepdim=True)
    penalty = (ridge * size + FLOOR * size.mean()).expand(-1, second.shape[1] - 1)
    penalty = torch.cat([penalty, torch.zeros_like(penalty[:, :1])], 1)
    factor = torch.linalg.cholesky(second + torch.diag_embed(penalty + FLOOR))
    wanted, found = problem.epilogue(rows.wanted), problem
    for _ in range(STEPS):
        lacking = wanted - problem.epilogue(found.output(found.weight, rows))
        slope = torch.cat([rows.inputs.mT @ lacking, lacking.sum(1, keepdim=True)], 1).double() / len(rows)
        slope[:, :-1] -= penalty[:, :-1, None] * (found.weight - problem.weight).mT
        step = torch.cholesky_solve(slope, factor).mT.to(problem.weight)
        found = replace(found, weight=found.weight + step[..., :-1], bias=found.bias + step[..., -1])
        if bool(step.abs().max() <= ENOUGH * found.weight.abs().max()):
            break
    return found.with_best_bias(found.weight, rows)
