"""Graphs of the example models, captured once in a test process: a capture takes a hundred times as long as a copy."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from models import EXAMPLES
from torch import nn

from planish.ir.capture import capture
from planish.ir.graph import Graph

P = ParamSpec("P")


def made_once(make: Callable[P, Graph]) -> Callable[P, Graph]:
    """`make` runs once for each of its arguments, whichever test is the first, and every caller gets a copy."""
    kept: dict[tuple, Graph] = {}

    @wraps(make)
    def copied(*args: P.args, **kwargs: P.kwargs) -> Graph:
        key = (args, tuple(sorted(kwargs.items())))
        if key not in kept:
            with torch.random.fork_rng():  # a test draws the same numbers wherever it runs
                torch.manual_seed(0)
                kept[key] = make(*args, **kwargs)
        return kept[key].copy()

    return copied


@made_once
def example_graph(name: str) -> Graph:
    """A graph of one's own of `EXAMPLES[name]`, with a batch known at run time."""
    make, shape = EXAMPLES[name]
    return capture(make(), torch.zeros(2, *shape))


def capture_seeded(model: nn.Module, *shape: int) -> Graph:
    """A graph of any model, with normal weights."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return capture(model, torch.randn(2, *shape))
