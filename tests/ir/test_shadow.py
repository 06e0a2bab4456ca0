"""Shadows: the types that calls yield are PyTorch's own, in memory order too."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from planish.ir.shadow import NoShadow, Run, Types

CALLS: dict[str, Callable] = {
    "conv": lambda x: functional.conv2d(x, torch.ones(4, 3, 3, 3), stride=2),
    "channels last": lambda x: torch.relu(x.to(memory_format=torch.channels_last)) + 1,
    "views": lambda x: x[:, 1:, ::2].transpose(1, 3).flatten(2),
    "split": lambda x: x.split(1, 1)[2],
    "in place": lambda x: x.clone().mul_(2).add_(1),
    "in place, as a view": lambda x: x.clone()[:, 1].relu_(),
    "reduced": lambda x: x.mean((2, 3)).softmax(1),
    "largest": lambda x: x.max(1)[1],
    "joined": lambda x: torch.cat([x, torch.zeros(2, 1, 8, 6)], 1),
    "converted": lambda x: x.to(torch.float16) @ torch.ones(6, 5, dtype=torch.float16, device=x.device),
    "compared": lambda x: torch.where(x > 0, x, torch.tensor(1.0)),
    "pooled": lambda x: functional.adaptive_avg_pool2d(functional.max_pool2d(x, 2), 1),
    "indexed": lambda x: x[:, torch.tensor([2, 0])],
}


@pytest.mark.parametrize("name", CALLS)
def test_types_are_those_of_pytorch(name):
    x = torch.randn(2, 3, 8, 6)
    types, lines = Types(), []
    for known in (types, Types(types.known)):  # worked out, and looked up
        run = Run(known, lines.append)
        got, wanted = CALLS[name](run.shadow("x", x)), CALLS[name](x)
        assert (got.dtype, got.shape, got.stride(), got.device) == (
            wanted.dtype, wanted.shape, wanted.stride(), wanted.device
        )  # fmt: skip
    half = len(lines) // 2
    assert types.found_new and not known.found_new and lines[:half] == lines[half:] != []


@pytest.mark.parametrize(
    "call",
    [
        lambda x: bool(x.sum() > 0),
        lambda x: x.nonzero(),
        lambda x: x.numpy(),
        lambda x: torch.zeros(2, 3, 8, 6).add_(x),
        lambda x: x.clone().unsqueeze_(0),
        lambda x: x.to("xpu"),
    ],
    ids=["branch", "data", "memory", "writes a constant", "changes its shape", "another device"],
)
def test_what_types_do_not_decide_is_refused(call):
    with pytest.raises((NoShadow, RuntimeError, TypeError, AssertionError)):
        call(Run(Types(), lambda line: None).shadow("x", torch.randn(2, 3, 8, 6)))


def test_constants_are_told_apart_by_content():
    texts = []
    for value in (1.0, 1.0, 2.0):
        run = Run(Types(), texts.append)
        run.shadow("x", torch.ones(2)) + torch.full((2,), value)
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(NoShadow, match="sparse"):
        Run(Types(), texts.append).shadow("x", torch.eye(2).to_sparse())
