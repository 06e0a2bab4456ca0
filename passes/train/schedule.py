"""The learning rate over the steps of a training: a function of the step alone, so resuming needs no state."""

import math
from collections.abc import Callable

# From how far the training is after warm-up, in [0, 1], to a factor of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    # Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, without restarts.
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


def rate_factor(schedule: str, step: int, total: int | None, warmup: int) -> float:
    """The factor of the learning rate at a step, counted from 0.

    The first `warmup` steps rise in equal parts to the full rate (Goyal et al., "Accurate, Large Minibatch SGD", 2017);
    the others follow the schedule. total: the number of all steps; None only where the schedule is constant.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if total is None:
        return 1.0
    return SCHEDULES[schedule](min((step - warmup) / max(total - warmup, 1), 1.0))
