"""Between float32, 8-bit integers and int32: against numpy's float32 and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from integer_arithmetic import DTYPES, check_inference, requantize

from planish.passes.quantize.scales import short

OPS = torch.ops.planish

dtypes = st.sampled_from([*DTYPES])
positions = st.sampled_from(["low", "middle", "high"])
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
scales = st.floats(min_value=2.0**-60, max_value=2.0**60, width=32)


def zero_point(dtype: torch.dtype, position: str) -> int:
    low, high = DTYPES[dtype]
    return {"low": low, "middle": (low + high) // 2, "high": high}[position]


def steps_in_float32(x: float, scale: float) -> float:
    """rint(x / scale), the quotient rounded once to float32: the nearest of the floats around it."""
    with np.errstate(over="ignore", under="ignore"):
        guess = np.float32(x) / np.float32(scale)
    if np.isfinite(guess):  # numpy's own division is checked against the exact quotient
        exact = Fraction(float(np.float32(x))) / Fraction(float(np.float32(scale)))
        around = [np.nextafter(guess, np.float32(end)) for end in (-np.inf, np.inf)]
        errors = [abs(Fraction(float(v)) - exact) for v in around if np.isfinite(v)]
        assert abs(Fraction(float(guess)) - exact) <= min(errors)
    return float(np.rint(guess))


@settings(max_examples=50)
@given(st.lists(floats, min_size=2, max_size=8), scales, dtypes, positions)
@example([0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30, 3.4e38, -0.0], 1.0, torch.int8, "middle")
@example([3.4e38, -3.4e38], 2.0**-60, torch.uint8, "low")
def test_quantize(values, scale, dtype, position):
    low, high = DTYPES[dtype]
    zero = zero_point(dtype, position)
    x = torch.tensor(values, dtype=torch.float32)
    got = check_inference(OPS.quantize, x, scale, zero, low, high, dtype)
    assert got.tolist() == [min(max(steps_in_float32(v, scale) + zero, low), high) for v in x.tolist()]
    assert got.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("position", ["low", "middle", "high"])
def test_quantize_of_nan_and_infinity(dtype, position):
    low, high = DTYPES[dtype]
    zero = zero_point(dtype, position)
    x = torch.tensor([float("nan"), float("inf"), float("-inf")])
    assert OPS.quantize(x, 0.1, zero, low, high, dtype).tolist() == [zero, high, low]
    if low + 3 <= zero <= high - 3:  # a narrowed range: a fused clip
        assert OPS.quantize(x, 0.1, zero, zero - 1, zero + 2, dtype).tolist() == [zero, zero + 2, zero - 1]


@settings(max_examples=50)
@given(st.floats(min_value=2.0**-60, max_value=2.0**60), dtypes, positions)
def test_dequantize_is_exact_for_the_scales_of_calibration(scale, dtype, position):
    scale, zero = short(scale, 255), zero_point(dtype, position)
    q = torch.arange(DTYPES[dtype][0], DTYPES[dtype][1] + 1).to(dtype)
    got = check_inference(OPS.dequantize, q, scale, zero)
    assert got.dtype == torch.float32
    assert [Fraction(v) for v in got.tolist()] == [(v - zero) * Fraction(scale) for v in q.tolist()]
    assert torch.equal(OPS.quantize(got, scale, zero, *DTYPES[dtype], dtype), q)


sums = st.one_of(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(-1000, 1000), st.just(2**24 + 1), st.just(2**31 - 1))
multipliers = st.floats(min_value=2.0**-100, max_value=2.0**30, width=32)


@settings(max_examples=50)
@given(st.lists(sums, min_size=6, max_size=6), st.lists(multipliers, min_size=3, max_size=3), dtypes, positions)
@example([1, 3, 5, -1, -3, -5], [0.5, 0.5, 0.5], torch.int8, "middle")  # halves go to even
@example([2**31 - 1, 2**24 + 1, 2**24 + 3, 0, -1, 1 - 2**31], [2.0**-24, 2.0**30, 2.0**-100], torch.uint8, "high")
def test_requantize_along_each_axis(acc, multiplier, dtype, position):
    low, high = DTYPES[dtype]
    zero = zero_point(dtype, position)
    values = np.array(acc).reshape(2, 3)
    args = zero, low, high, dtype
    expected = requantize(values, multiplier, zero, low, high)
    acc, factors = torch.tensor(values, dtype=torch.int32), torch.tensor(multiplier, dtype=torch.float32)
    for axis in (1, -1):
        assert check_inference(OPS.requantize, acc, factors, axis, *args).tolist() == expected.tolist()
    assert OPS.requantize(acc.T.contiguous(), factors, 0, *args).T.tolist() == expected.tolist()
    one = requantize(values, multiplier[0], zero, low, high)
    assert check_inference(OPS.requantize, acc, factors[0], 0, *args).tolist() == one.tolist()


@given(st.lists(sums, min_size=1, max_size=20), multipliers)
def test_requantize_is_within_half_a_step_of_the_exact_product(acc, multiplier):
    """Two roundings to float32 move the product by 2**-23 of it, before it is rounded to a step."""
    got = OPS.requantize(torch.tensor(acc, dtype=torch.int32), torch.tensor(multiplier), 0, 0, -128, 127, torch.int8)
    for value, level in zip(acc, got.tolist(), strict=True):
        exact = value * Fraction(multiplier)
        clipped = min(max(exact, -128), 127)
        assert abs(level - clipped) <= Fraction(1, 2) + abs(exact) * Fraction(1, 2**23)


@settings(max_examples=50)
@given(st.lists(sums, min_size=6, max_size=6), st.lists(multipliers, min_size=3, max_size=3))
def test_dequantize_int32(acc, scale):
    values, scales = np.array(acc, np.int32).reshape(2, 3), np.array(scale, np.float32)
    got = check_inference(OPS.dequantize_int32, torch.from_numpy(values), torch.from_numpy(scales), -1)
    np.testing.assert_array_equal(got.numpy(), values.astype(np.float32) * scales)
    # By channel [N, C, H, W]: as the same numbers moved there.
    maps = torch.from_numpy(values)[:, :, None, None].expand(2, 3, 2, 2)
    assert torch.equal(OPS.dequantize_int32(maps, torch.from_numpy(scales), 1)[..., 1, 0], got)
