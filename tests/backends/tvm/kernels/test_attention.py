"""Attention against PyTorch's in float64, over shapes that fill no vector, both layouts, shared heads and masks."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from planish.backends.tvm.kernels import Attention, Tokens, round_up

from .conftest import Runner, close

# batch, query heads, key heads, queries, keys, width, width of values
SHAPES = {
    "one query": (1, 2, 2, 1, 5, 8, 8),
    "odd everything": (2, 3, 3, 19, 33, 17, 21),
    "shared keys": (2, 6, 2, 7, 16, 8, 40),
    "several panels, batch at run time": (None, 2, 1, 37, 150, 24, 70),
}


def in_memory(x: torch.Tensor, tokens_first: bool) -> np.ndarray:
    """[batch, heads, tokens, width] as a kernel reads it."""
    return np.ascontiguousarray(x.transpose(1, 2).numpy() if tokens_first else x.numpy())


def attend(runner: Runner, shape, tokens_first: bool, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """(the kernel's output, PyTorch's in float64)"""
    batch, heads, key_heads, queries, keys, width, value_width = shape
    generator = torch.Generator().manual_seed(5)
    layouts = [(heads, queries, width), (key_heads, keys, width), (key_heads, keys, value_width)]
    q, k, v = (torch.randn(batch or 2, *extents, generator=generator) for extents in layouts)
    tokens = [Tokens(*extents, tokens_first) for extents in (*layouts, (heads, queries, value_width))]
    spec = Attention(batch, *tokens, scale=0.3, mask=None if mask is None else tuple(mask.shape[:3]))
    inputs = [in_memory(x, tokens_first) for x in (q, k, v)]
    if mask is not None:
        behind = round_up(keys, runner.arithmetic.lanes) - keys
        inputs.append(np.pad(mask.numpy(), [(0, 0)] * 3 + [(0, behind)], constant_values=-np.inf))
    got = torch.from_numpy(runner.call(spec, inputs))
    added = None if mask is None else mask.double()
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), added, scale=0.3, enable_gqa=True)
    return got.transpose(1, 2) if tokens_first else got, wanted


@pytest.mark.parametrize("tokens_first", [False, True], ids=["heads first", "tokens first"])
@pytest.mark.parametrize("name", SHAPES)
def test_attention(runner, name, tokens_first):
    got, wanted = attend(runner, SHAPES[name], tokens_first)
    close(got, wanted, SHAPES[name][4] + SHAPES[name][5])


@pytest.mark.parametrize("extents", [(1, 1, 19), (2, 1, 1), (2, 3, 19)], ids=str)
def test_masks_of_any_extent(runner, extents):
    """What is masked has no share at all, and a row of which nothing is left is zero."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.where(torch.rand(*extents, 33, generator=generator) < 0.3, float("-inf"), 0.5)
    mask[0, 0, 0] = float("-inf")
    got, wanted = attend(runner, SHAPES["odd everything"], True, mask)
    close(got, wanted, 50)
    assert not got[0, 0, 0].any()


def test_large_scores_do_not_overflow(widest):
    """exp(score) alone would be infinite."""
    spec = Attention(1, *[Tokens(1, 9, 8)] * 4, scale=100.0)
    x = torch.randn(1, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    got = torch.from_numpy(widest.call(spec, [x.numpy()] * 3))
    close(got, F.scaled_dot_product_attention(x.double(), x.double(), x.double(), scale=100.0), 800)


def test_nan_stays_in_its_row(widest):
    spec = Attention(1, *[Tokens(1, 9, 8)] * 4, scale=1.0)
    q, x = (torch.randn(1, 1, 9, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    q[0, 0, 3, 2] = float("nan")
    got = torch.from_numpy(widest.call(spec, [q.numpy(), x.numpy(), x.numpy()]))
    assert torch.equal(got.isnan().any(-1)[0, 0], torch.arange(9) == 3)
