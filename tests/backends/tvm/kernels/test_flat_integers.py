"""Quantizing and tables over rows that are shorter than a vector, fill it, or end within one."""

import numpy as np
import pytest

from planish.backends.tvm.kernels import FlatLookup, FlatQuantize, StoredGrid, constants

ROWS = [(1, 1), (5, 7), (3, 64), (None, 200)]


@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_quantize(integers, shape):
    """Ties go to even, NaN is the zero point, infinities are the ends."""
    rows, width = shape
    dtype = np.dtype(integers.arithmetic.activation)
    low, high = int(np.iinfo(dtype).min) + 3, int(np.iinfo(dtype).max) - 2
    grid, scale = StoredGrid(low + 90, low, high), 0.25
    x = np.random.default_rng(1).normal(0, 20, (rows or 4, width)).astype(np.float32)
    special = np.array([0.125, 0.375, -0.125, np.nan, np.inf, -np.inf], np.float32)
    x.flat[: min(len(special), x.size)] = special[: x.size]
    got = integers.call(FlatQuantize(rows, width), [x], (constants(grid, scale=scale),))
    steps = np.nan_to_num(np.rint(x / np.float32(scale)), nan=0.0, posinf=1e9, neginf=-1e9)
    np.testing.assert_array_equal(got, np.clip(steps + grid.zero_point, low, high))


@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_tables(integers, shape):
    rows, width = shape
    dtype = np.dtype(integers.arithmetic.activation)
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    draw = np.random.default_rng(2)
    table = draw.integers(low, high + 1, 256).astype(dtype)
    x = draw.integers(low, high + 1, (rows or 4, width)).astype(dtype)
    got = integers.call(FlatLookup(rows, width), [x], (table,))
    np.testing.assert_array_equal(got, table[x.astype(int) - low])
