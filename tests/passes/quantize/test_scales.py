"""Scale formulas against float64 numpy, and what they promise to integer kernels."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.passes.quantize.scales import SMALLEST_SCALE, affine, short, symmetric

RANGES = [(-128, 127), (0, 255), (-8, 7), (-32768, 32767)]
finite = st.floats(-(2.0**100), 2.0**100, width=32)


@given(low=finite, high=finite, levels=st.sampled_from(RANGES))
def test_affine_covers_its_range_and_holds_zero_exactly(low, high, levels):
    """In exact rationals: no value of the range is further than half a step from a level."""
    low, high = min(low, high), max(low, high)
    scale, zero_point = affine(low, high, *levels)
    assert math.isfinite(1 / np.float32(scale))
    assert levels[0] <= zero_point <= levels[1]
    exact = Fraction(scale)
    # -low / scale is divided in float64, which may round to a half what lies just beside it.
    reach = exact * (Fraction(1, 2) + Fraction(1, 2**36))
    assert exact * (levels[0] - zero_point) <= Fraction(min(low, 0.0)) + reach
    assert exact * (levels[1] - zero_point) >= Fraction(max(high, 0.0)) - reach
    assert low == high == 0 or exact * (levels[1] - levels[0]) >= Fraction(max(high, 0.0)) - Fraction(min(low, 0.0))


@given(low=finite, high=finite, levels=st.sampled_from(RANGES), data=st.data())
def test_dequantizing_is_exact_in_float32(low, high, levels, data):
    scale, zero_point = affine(min(low, high), max(low, high), *levels)
    q = data.draw(st.integers(*levels))
    assert Fraction(float(np.float32(q - zero_point) * np.float32(scale))) == (q - zero_point) * Fraction(scale)


@given(scale=st.floats(2.0**-60, 2.0**100), steps=st.sampled_from([15, 255, 65535]))
def test_short_is_the_next_number_up_of_few_bits(scale, steps):
    bits = {15: 10, 255: 10, 65535: 8}[steps]
    got = Fraction(short(scale, steps))
    grid = Fraction(2) ** (math.frexp(scale)[1] - bits)
    assert got % grid == 0
    assert 0 <= got - Fraction(scale) < grid


@pytest.mark.parametrize(
    ("low", "high", "levels", "expected"),
    [
        (0.0, 255.0, (0, 255), (1.0, 0)),
        (0.0, 6.0, (0, 255), (772 / 2**15, 0)),  # 6/255 = 771.01 / 2**15
        (0.0, 6.0, (-128, 127), (772 / 2**15, -128)),
        (-1.0, 1.0, (-128, 127), (515 / 2**16, -1)),  # 2/255 = 514.01 / 2**16; -128 + round(127.25)
        (-3.0, 0.0, (0, 255), (772 / 2**16, 255)),
        (2.0, 5.0, (0, 255), (643 / 2**15, 0)),  # zero is put into the range; 5/255 = 642.5 / 2**15
        (-1.0, 1.0, (-32768, 32767), (129 / 2**22, -254)),  # 8 bits: 2/65535 = 128.002 / 2**22; 2**22/129 = 32514.05
        (0.0, 0.0, (-128, 127), (1.0, 0)),
        (0.0, 1e-44, (0, 255), (SMALLEST_SCALE, 0)),
    ],
)
def test_affine_by_hand(low, high, levels, expected):
    assert affine(low, high, *levels) == expected


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
