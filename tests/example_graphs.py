"""Graphs of the example models, captured once in a test process: a capture takes a hundred times as long as a copy."""

from functools import cache

import torch
from models import EXAMPLES
from torch import nn

from planish.ir.capture import capture
from planish.ir.graph import Graph


@cache
def _captured(name: str) -> Graph:
    make, shape = EXAMPLES[name]
    return capture(make(), torch.zeros(2, *shape))


def example_graph(name: str) -> Graph:
    """A graph of one's own of `EXAMPLES[name]`, with a batch known at run time."""
    return _captured(name).copy()


def capture_seeded(model: nn.Module, *shape: int) -> Graph:
    """A graph of any model, with normal weights."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return capture(model, torch.randn(2, *shape))
