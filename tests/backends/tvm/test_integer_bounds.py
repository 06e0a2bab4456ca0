"""Which products have small sums, and that a product that is changed for it gives the same bytes."""

import itertools

import numpy as np
import pytest
from integer_arithmetic import requantize

from planish.backends.tvm.arithmetic.rounding import ROUNDER
from planish.backends.tvm.emit.integer_bounds import (
    INT32,
    LARGEST_STEP,
    LARGEST_SUM,
    are_bounded,
    are_read,
    residual_fits,
    sum_ends,
    with_small_sums,
)
from planish.backends.tvm.kernels import Addition, StoredGrid, constants

GRID = StoredGrid(-128, -128, 127)
LARGEST_BIAS = 2**30


def product(weight, bias, factors, zero_point=-3, grid=GRID) -> list:
    """As `arrays_of` gives it."""
    bias, factors = np.array(bias, np.int32), np.array(factors, np.float32)
    return [np.array(weight, np.int8), bias, factors, constants(grid), zero_point]


def results(arrays: list, x: np.ndarray, grid=GRID) -> np.ndarray:
    """x: [samples, inputs], as they are stored."""
    weight, bias, factors, _, zero_point = arrays
    sums = (x.astype(np.int64) - zero_point) @ weight.astype(np.int64).T + bias
    return requantize(sums, np.broadcast_to(factors, len(weight)), grid.zero_point, grid.low, grid.high)


@pytest.mark.parametrize("zero_point", [-128, -3, 0, 127])
def test_ends_are_reached_and_not_passed(zero_point):
    weight, bias = np.array([[3, -7, 127], [0, 0, 0], [-1, -2, -3]], np.int8), np.array([5, -9, 2**20], np.int32)
    corners = np.array(list(itertools.product([-128, zero_point, 127], repeat=3)))
    sums = (corners - zero_point) @ weight.astype(np.int64).T + bias
    assert np.array_equal(sum_ends(weight, bias, zero_point, "int8"), [sums.min(0), sums.max(0)])


def test_small_sums_are_left_as_they_are():
    arrays = product(np.full((2, 16), 127), [100, -100], [0.01, 0.02])
    assert with_small_sums(arrays, "int8") is arrays


@pytest.mark.parametrize("bias", [LARGEST_BIAS, -LARGEST_BIAS, 700_000_000])
def test_an_output_whose_weights_nearly_vanish_becomes_its_bias(bias):
    """Calibration gives it a scale so small that its bias fills int32."""
    weight = np.random.default_rng(0).integers(-127, 128, (3, 32))
    arrays = product(weight, [1000, bias, -1000], [0.01, 100.2 / LARGEST_BIAS, 0.01])
    small = with_small_sums(arrays, "int8")
    assert small is not None and not np.array_equal(small[0], arrays[0])
    assert np.abs(sum_ends(small[0], small[1], small[4], "int8")).max() <= LARGEST_SUM
    x = np.random.default_rng(1).integers(-128, 128, (500, 32))
    assert np.array_equal(results(small, x), results(arrays, x))
    assert arrays[1][1] == bias  # the given arrays are the graph's own


@pytest.mark.parametrize(
    ("why", "bias", "factor"),
    [
        ("bytes differ by input", LARGEST_BIAS, 100.5 / LARGEST_BIAS),
        ("sums may wrap around", INT32.max - 5, 100.2 / INT32.max),
        ("the sum is too large", LARGEST_SUM + 1, 1e-4),
        ("the step is too large", 20_000, 2.0 * LARGEST_STEP / 20_000),
    ],
)
def test_what_cannot_be_small_says_so(why, bias, factor):
    """Ends of the step's grid hold only the last two back: results below and above them would be equal."""
    grid = StoredGrid(0, -128, 127) if "bytes" in why or "wrap" in why else StoredGrid(0, -(2**20), 2**20)
    weight = np.full((1, 32), 127)
    assert with_small_sums(product(weight, [bias], [factor], grid=grid), "int8") is None
    assert with_small_sums(product(weight, [0], [1e-3], grid=grid), "int8") is not None


@pytest.mark.parametrize("factor", [2e-4, -2e-4, 1e-3])
def test_sums_beyond_22_bits_are_read_where_they_leave_the_grid(factor):
    """Against the contract: what the bits of a sum are read as gives the same byte, for sums of every size."""
    limit = 2**23 if abs(factor) > 5e-4 else 2**24
    ends = np.array([[-limit], [limit]])
    assert are_read(ends, np.array([factor], np.float32), constants(GRID))[0]
    sums = np.concatenate([np.linspace(-limit, limit, 20_001), np.arange(-300, 300) + 2**22]).astype(np.int64)
    read = (np.float32(ROUNDER).view(np.int32) + sums).astype(np.int32).view(np.float32) - np.float32(ROUNDER)
    steps = np.rint(read * np.float32(factor))
    assert np.abs(steps).max() <= LARGEST_STEP
    got = np.clip(steps + GRID.zero_point, GRID.low, GRID.high)
    assert np.array_equal(got, requantize(sums, np.float32(factor), GRID.zero_point, GRID.low, GRID.high))


LEAST_NO_NUMBER = 0x7F800000 - int(np.float32(ROUNDER).view(np.int32))


@pytest.mark.parametrize(
    ("why", "low", "high", "factor"),
    [
        ("its end is no end of the grid", 0, LARGEST_SUM + 1, 200 / LARGEST_SUM),
        ("its end is no end of the grid", -LARGEST_SUM - 1, 0, 200 / LARGEST_SUM),
        ("it is no number", 0, LEAST_NO_NUMBER, 3e-7),
        ("it is below zero as a float", -(2**31) + 5, 0, 1e-3),
        ("its step leaves int16", 0, 2**26, 1e-2),
    ],
)
def test_what_is_not_read(why, low, high, factor):
    grid = StoredGrid(0, 0, 0) if why == "it is no number" else GRID  # a grid that any step of one leaves
    assert not are_read(np.array([[low], [high]]), np.array([factor], np.float32), constants(grid))[0]


def test_a_residual_that_leaves_int16_is_told():
    """Both reach 255 steps: 127 times them, and a zero point, lie below 2**15; 128 times them do not."""
    for factor, fits in ((126.0, True), (-126.0, True), (127.0, False), (-127.0, False)):
        assert residual_fits(constants(GRID, Addition(1.0, factor, -128, GRID)), "int8") == fits


def test_factors_below_one_bound_products():
    """The largest int32 leaves it by a factor of 1: it becomes 2**31 in float32."""
    weight, below = np.ones((2, 3)), np.nextafter(np.float32(1), np.float32(0))
    assert are_bounded(product(weight, [0, 0], [0.5, below]))
    assert not are_bounded(product(weight, [0, 0], [0.5, 1.0]))
    assert np.float32(INT32.max) * below < 2**31 <= np.float32(INT32.max)
