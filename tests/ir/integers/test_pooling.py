"""Window sums against int64 sums of slices."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_arithmetic import DTYPES, check_inference, conv, random_integers

OPS = torch.ops.planish

dtypes = st.sampled_from([*DTYPES])
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=2),
    st.lists(st.integers(1, 3), min_size=2, max_size=2),
    st.booleans(),
    st.integers(0, 5),
    dtypes,
    st.sampled_from([0.0, 0.4, 1.0]),
    seeds,
)
def test_sum_pool2d_int32(kernel, stride, padded, more, dtype, part, seed):
    low, high = DTYPES[dtype]
    zero = round(low + part * (high - low))
    padding = [k // 2 if padded else 0 for k in kernel]
    q = random_integers(seed, (2, 3, kernel[0] + more, kernel[1] + 2), dtype)
    got = check_inference(OPS.sum_pool2d_int32, q, kernel, stride, padding, zero)
    ones = np.ones((3, 1, *kernel), int)  # a depthwise kernel of ones
    expected = conv(q.numpy().astype(int) - zero, ones, np.zeros(3, int), stride, padding, [1, 1], 3)
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got.numpy(), expected)


@settings(max_examples=50)
@given(st.sets(st.integers(-3, -1), min_size=1), st.booleans(), dtypes, st.sampled_from([0.0, 0.4, 1.0]), seeds)
def test_sum_int32(dims, keepdim, dtype, part, seed):
    low, high = DTYPES[dtype]
    zero = round(low + part * (high - low))
    q = random_integers(seed, (2, 3, 5, 4), dtype)
    got = check_inference(OPS.sum_int32, q, sorted(dims), keepdim, zero)
    expected = (q.numpy().astype(np.int64) - zero).sum(tuple(dims), keepdims=keepdim)
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got.numpy(), expected)


def test_a_sum_of_a_whole_map_of_the_largest_values_is_exact():
    q = torch.full((1, 1, 2048, 4096), 255, dtype=torch.uint8)
    assert OPS.sum_int32(q, [2, 3], False, 0).item() == 255 * 2**23  # 2139095040, close to 2**31
