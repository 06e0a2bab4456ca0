"""Winograd convolutions against PyTorch in float64, and where they are chosen."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from planish.backends.tvm.kernels import DirectConv, Epilogue, Window, Winograd
from planish.backends.tvm.kernels.winograd_choice import instead_of
from planish.backends.tvm.kernels.winograd_matrices import POINTS, matrices

# batch, height, width, in, out, padding
CASES = {
    "whole tiles": (1, 8, 8, 32, 48, (1, 1, 1, 1)),
    "tiles beyond the map, odd channels": (2, 9, 15, 20, 40, (1, 1, 1, 1)),
    "no padding": (1, 11, 12, 16, 16, (0, 0, 0, 0)),
    "one-sided padding": (1, 7, 10, 16, 24, (0, 2, 2, 0)),
    "one output": (1, 3, 3, 5, 7, (0, 0, 0, 0)),
    "one pixel": (3, 1, 1, 20, 40, (1, 1, 1, 1)),
    "images share a block": (5, 6, 6, 16, 16, (1, 1, 1, 1)),
    "several blocks": (1, 70, 70, 64, 64, (1, 1, 1, 1)),
    "batch known at run time": (None, 10, 10, 16, 40, (1, 1, 1, 1)),
}


@pytest.mark.parametrize("tile", POINTS)
@pytest.mark.parametrize("case", CASES)
def test_winograd(runner, case, tile):
    """Tolerance: a direct kernel's (one rounding error per product) for 2 x 2 tiles; for 4 x 4 tiles, whose transforms
    multiply by up to 8 and add up to 36 products, 8 times that (seen: 4)."""
    batch, height, width, inputs, outputs, padding = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(batch or 3, inputs, height, width)
    weight, bias = torch.randn(outputs, inputs, 3, 3), torch.randn(outputs)
    top, bottom, left, right = padding
    shape = height + top + bottom - 2, width + left + right - 2
    added = torch.randn(batch or 3, outputs, *shape)
    spec = Winograd(batch, height, width, inputs, outputs, padding, tile, Epilogue("relu", residual="before"))
    got = runner.images(spec, x, weight, bias, residual=added)
    padded = F.pad(x.double(), (left, right, top, bottom))
    wanted = F.relu(F.conv2d(padded, weight.double(), bias.double()) + added)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-7 * (9 * inputs + 8) * (8 if tile == 4 else 1))


@pytest.mark.parametrize("outputs", POINTS)
def test_matrices_filter_exactly(outputs):
    """output @ ((weight @ g) * (input @ d)) is the correlation of d and g, in fractions."""
    made = matrices(outputs)
    rows = [np.array(rows, object) for rows in (made.output, made.weight, made.input)]
    generator = np.random.default_rng(0)
    g, d = (np.array(generator.integers(-9, 9, n).tolist(), object) for n in (3, outputs + 2))
    wanted = [sum(d[i + j] * g[j] for j in range(3)) for i in range(outputs)]
    assert (rows[0] @ ((rows[1] @ g) * (rows[2] @ d))).tolist() == wanted


SAME = Window((3, 3), padding=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("conv", "tile"),
    [
        (DirectConv(1, 56, 56, 64, 64, SAME), 4),
        (DirectConv(1, 14, 14, 256, 256, SAME), 2),
        (DirectConv(1, 7, 7, 512, 512, SAME), None),
        (DirectConv(1, 1, 1, 64, 64, SAME), None),
        (DirectConv(1, 56, 56, 64, 64, Window((3, 3), (2, 2), (1, 1, 1, 1))), None),
        (DirectConv(1, 56, 56, 64, 64, Window((3, 3), (1, 1), (2, 2, 2, 2), (2, 2))), None),
        (DirectConv(1, 56, 56, 64, 64, SAME, groups=2), None),
        (DirectConv(1, 56, 56, 3, 64, SAME, image=True), None),
        (DirectConv(1, 56, 56, 64, 64, Window((1, 1))), None),
    ],
)
def test_choice(widest, conv, tile):
    found = instead_of(conv, widest.arithmetic)
    assert (found and found.tile) == tile
