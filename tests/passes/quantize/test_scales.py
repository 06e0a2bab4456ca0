"""Scale formulas against float64 numpy, and what they promise to integer kernels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.passes.quantize.scales import SMALLEST_SCALE, affine, symmetric

RANGES = [(-128, 127), (0, 255), (-8, 7)]
finite = st.floats(-(2.0**100), 2.0**100, width=32)


@given(low=finite, high=finite, levels=st.sampled_from(RANGES))
def test_affine_covers_its_range_and_holds_zero_exactly(low, high, levels):
    low, high = min(low, high), max(low, high)
    scale, zero_point = affine(low, high, *levels)
    assert np.float32(scale) == scale and math.isfinite(1 / np.float32(scale))
    assert levels[0] <= zero_point <= levels[1]
    # The zero point is rounded, so either end may be cut by half a step; float32 rounds the scale besides.
    step = scale * 0.5001
    assert scale * (levels[0] - zero_point) <= min(low, 0) + step
    assert scale * (levels[1] - zero_point) >= max(high, 0) - step


@pytest.mark.parametrize(
    ("low", "high", "levels", "expected"),
    [
        (0.0, 6.0, (0, 255), (6 / 255, 0)),
        (0.0, 6.0, (-128, 127), (6 / 255, -128)),
        (-1.0, 1.0, (-128, 127), (2 / 255, -1)),  # float32 has 2/255 a little large: -128 + 127.49
        (-3.0, 0.0, (0, 255), (3 / 255, 255)),
        (2.0, 5.0, (0, 255), (5 / 255, 0)),  # zero is put into the range
        (0.0, 0.0, (-128, 127), (1.0, 0)),
        (0.0, 1e-44, (0, 255), (SMALLEST_SCALE, 0)),
    ],
)
def test_affine_by_hand(low, high, levels, expected):
    scale, zero_point = affine(low, high, *levels)
    assert (scale, zero_point) == (float(np.float32(expected[0])), expected[1])


def test_symmetric_is_the_largest_magnitude_over_127():
    low, high = torch.tensor([-1.0, -0.5, 0.0]), torch.tensor([0.5, 2.0, 1e-3])
    scale, floored = symmetric(low, high, 127, None, 1.0)
    np.testing.assert_array_equal(scale.numpy(), (np.array([1.0, 2.0, np.float32(1e-3)]) / 127).astype(np.float32))
    assert floored == 0


def test_the_integer_bias_of_a_dead_channel_fits_half_of_int32():
    low = torch.tensor([-1.0, -1e-12, 0.0])
    bias = torch.tensor([0.5, 40.0, -3.0])
    scale, floored = symmetric(low, -low, 127, bias, 1e-4)
    assert floored == 2
    integer = np.rint(bias.double().numpy() / (1e-4 * scale.double().numpy()))
    assert np.abs(integer).max() <= 2**30 * (1 + 2**-22)  # float32 rounds the scale
    assert np.abs(np.rint(bias.numpy() / (1e-4 * np.maximum(-low.double().numpy() / 127, 1e-30)))).max() > 2**31


def test_a_weight_of_zeros_alone_gets_a_usable_scale():
    zeros = torch.zeros(4)
    scale, floored = symmetric(zeros, zeros, 127, None, 1.0)
    assert floored == 4
    assert bool((scale >= SMALLEST_SCALE).all())
