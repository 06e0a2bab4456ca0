"""Products of two activations: floats against float64, integers against int64 arithmetic."""

from itertools import product

import numpy as np
import pytest
import torch
from integer_arithmetic import requantize

from planish.backends.tvm.kernels import BatchedMatmul, Dequantize, Requantize, StoredGrid, Tokens, constants

from .conftest import Runner, close

# batch, heads, rows, steps, outputs: one row, reductions and outputs that fill no group and no vector, several panels
SHAPES = [(1, 2, 1, 8, 16), (2, 3, 19, 33, 21), (None, 1, 37, 5, 3), (1, 1, 50, 70, 150)]
LAYOUTS = {"heads first": (False, False), "tokens first, right side transposed": (True, True)}


def in_memory(x: np.ndarray, tokens_first: bool) -> np.ndarray:
    return np.ascontiguousarray(x.swapaxes(1, 2) if tokens_first else x)


def multiply(runner: Runner, left, right, shape, layout, weights=(), **options) -> np.ndarray:
    """The kernel's product of [batch, heads, rows, steps] and [batch, heads, steps, outputs]."""
    batch, heads, rows, steps, outputs = shape
    tokens_first, transposed = LAYOUTS[layout]
    second = (outputs, steps) if transposed else (steps, outputs)
    sides = [Tokens(heads, *extents, tokens_first) for extents in ((rows, steps), second, (rows, outputs))]
    spec = BatchedMatmul(batch, *sides, transposed=transposed, **options)
    right = right.swapaxes(2, 3) if transposed else right
    got = runner.call(spec, [in_memory(left, tokens_first), in_memory(right, tokens_first)], weights)
    return got.swapaxes(1, 2) if tokens_first else got


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_floats(runner, shape, layout):
    batch, heads, rows, steps, outputs = shape
    draw = np.random.default_rng(1)
    left = draw.normal(size=(batch or 2, heads, rows, steps)).astype(np.float32)
    right = draw.normal(size=(batch or 2, heads, steps, outputs)).astype(np.float32)
    got = multiply(runner, left, right, shape, layout)
    close(torch.from_numpy(got.copy()), torch.from_numpy(left).double() @ torch.from_numpy(right).double(), steps)


# What is done with a sum does not know where it is stored: large kernels, which take long to compile, pair them.
FINISHED = [
    (shape, layout, to_float)
    for shape in SHAPES
    for layout, to_float in product(LAYOUTS, [False, True])
    if shape in SHAPES[:1] or (layout == "heads first") == (to_float ^ (shape == SHAPES[-1]))
]


@pytest.mark.parametrize("extreme", [False, True], ids=["random", "ends"])
@pytest.mark.parametrize(("shape", "layout", "to_float"), FINISHED, ids=str)
def test_integers(integers, shape, layout, to_float, extreme):
    batch, heads, rows, steps, outputs = shape
    dtype = np.dtype(integers.arithmetic.activation)
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    draw = np.random.default_rng(2)

    def values(*extents: int) -> np.ndarray:
        drawn = draw.choice([low, high], extents) if extreme else draw.integers(low, high + 1, extents)
        return drawn.astype(dtype)

    left, right = values(batch or 2, heads, rows, steps), values(batch or 2, heads, steps, outputs)
    zeros = (low, high) if extreme else (low + 100, low + 140)
    factor, grid = np.float32(1 / (60 * steps**0.5 * 40)), StoredGrid(low + 90, low + 3, high - 2)
    finish = Dequantize() if to_float else Requantize()
    weights = np.full(outputs, factor), None if to_float else constants(grid), zeros
    got = multiply(integers, left, right, shape, layout, weights, epilogue=finish)
    acc = (left.astype(np.int64) - zeros[0]) @ (right.astype(np.int64) - zeros[1])
    wanted = requantize(acc, factor, grid.zero_point, grid.low, grid.high)
    np.testing.assert_array_equal(got, acc.astype(np.float32) * factor if to_float else wanted)


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="batched product"):
        BatchedMatmul(1, Tokens(1, 3, 4), Tokens(1, 5, 6), Tokens(1, 3, 6))
