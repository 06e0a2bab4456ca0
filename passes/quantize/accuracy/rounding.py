"""Learned rounding of one layer: each weight goes up or down so that the layer's output is nearest to the float one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .rows import Rows

# The rectified sigmoid of section 3.2: it reaches 0 and 1 at finite inputs, so that gradients do not vanish there.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
BETA_START, BETA_END = 20.0, 2.0
WARM_UP = 0.2  # of the iterations, without the regularizer
PER_UNKNOWN, LEAST_BATCH = 8, 128
BIAS_STEPS = 3  # of Newton's method: clips are linear nearly everywhere


@dataclass(frozen=True)
class Budget:
    """How long and how fast to learn.

    iterations  steps of Adam
    batch       rows of a step, at most; a weight of few unknowns (depthwise) takes `PER_UNKNOWN` for each
    rate        Adam's learning rate, on the logits of h
    pressure    weight of the regularizer against an error of 1, that of rounding to nearest
    """

    iterations: int = 200
    batch: int = 256
    rate: float = 0.1
    pressure: float = 1.0


@dataclass(frozen=True)
class Problem:
    """One layer.

    weight    [groups, outputs of a group, unknowns], float
    scale     [groups, outputs of a group, 1]
    limit     levels run from -limit to limit
    bias      [groups, outputs of a group]
    epilogue  what follows the product, on [groups, n, outputs of a group]
    """

    weight: torch.Tensor
    scale: torch.Tensor
    limit: int
    bias: torch.Tensor
    epilogue: Callable[[torch.Tensor], torch.Tensor]

    def nearest(self) -> torch.Tensor:
        """The levels that fake-quant gives, half to even."""
        return (self.weight / self.scale).round().clamp(-self.limit, self.limit)

    def output(self, weight: torch.Tensor, rows: Rows) -> torch.Tensor:
        """[groups, n, outputs] of the layer with another weight, before its epilogue."""
        return rows.inputs @ weight.mT + self.bias[:, None]

    def error(self, weight: torch.Tensor, rows: Rows) -> float:
        """The mean squared error behind the epilogue, summed over the outputs, of the layer with another weight."""
        lacking = self.epilogue(rows.wanted) - self.epilogue(self.output(weight, rows))
        return float(lacking.double().square().sum()) / len(rows)

    def with_best_bias(self, weight: torch.Tensor, rows: Rows) -> "Problem":
        """The problem with the bias that, with this weight, brings the epilogue's output nearest to the wanted one."""
        problem, wanted = self, self.epilogue(rows.wanted)
        for _ in range(BIAS_STEPS):
            with torch.enable_grad():
                output = problem.output(weight, rows).requires_grad_()
                result = self.epilogue(output)
                (slope,) = torch.autograd.grad(result.sum(), output)
            curvature = slope.square().sum(1)
            step = (slope * (wanted - result.detach())).sum(1) / torch.where(curvature > 0, curvature, 1.0)
            problem = replace(problem, bias=problem.bias + step)
        return problem


def learn_rounding(problem: Problem, rows: Rows, budget: Budget) -> torch.Tensor:
    """Levels [groups, outputs, unknowns], each the float weight's rounded down or up, that give the least error.

    AdaRound: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020,
    arXiv:2004.10568, equations 21 to 25. The error is measured in units of that of rounding to nearest and the
    regularizer per weight, so that one pressure fits all layers.
    """
    target, unit = problem.epilogue(rows.wanted), problem.error(problem.nearest() * problem.scale, rows)
    if unit == 0.0:
        return problem.nearest()
    down = (problem.weight / problem.scale).floor()
    logits = _logits(problem.weight / problem.scale - down).requires_grad_()
    adam = torch.optim.Adam([logits], budget.rate)
    batch = min(budget.batch, max(LEAST_BATCH, PER_UNKNOWN * down.shape[2]))
    for step in range(budget.iterations):
        start = step * batch % max(len(rows) - batch + 1, 1)
        part = rows.slice(start, start + batch)
        with torch.enable_grad():
            rise = _rise(logits)
            weight = (down + rise).clamp(-problem.limit, problem.limit) * problem.scale
            output = problem.epilogue(problem.output(weight, part))
            loss = (output - target[:, start : start + batch]).square().sum() / (len(part) * unit)
            if step >= WARM_UP * budget.iterations:
                loss = loss + budget.pressure * (1 - (2 * rise - 1).abs() ** _beta(step / budget.iterations)).mean()
        (logits.grad,) = torch.autograd.grad(loss, logits)
        adam.step()
    return (down + (logits.detach() >= 0)).clamp(-problem.limit, problem.limit)


def _rise(logits: torch.Tensor) -> torch.Tensor:
    """h, from 0 (down) to 1 (up)."""
    return (torch.sigmoid(logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)


def _logits(rise: torch.Tensor) -> torch.Tensor:
    """The inverse of `_rise`: learning starts with the float weight itself."""
    return torch.logit((rise - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW))


def _beta(done: float) -> float:
    """From 20 to 2 on a half cosine after the warm-up."""
    part = (done - WARM_UP) / (1 - WARM_UP)
    return BETA_END + (BETA_START - BETA_END) * 0.5 * (1 + float(torch.cos(torch.tensor(part * torch.pi))))
