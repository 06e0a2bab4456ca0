"""Int32 products against int64 arithmetic in numpy: shapes, strides, groups, dilation, zero points at the ends."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from integer_arithmetic import DTYPES, check_inference, conv, conv_transpose, random_integers

OPS = torch.ops.planish

dtypes = st.sampled_from([*DTYPES])
kinds = st.sampled_from(["all", "ends"])
seeds = st.integers(0, 2**32 - 1)
zeros = st.sampled_from([0, 1, 2])  # the lowest integer, one inside, the highest
pairs = st.lists(st.integers(1, 3), min_size=2, max_size=2)


def zero_point(dtype: torch.dtype, which: int) -> int:
    low, high = DTYPES[dtype]
    return (low, low + 131, high)[which]


def integer_bias(seed: int, count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**30), 2**30, count)).to(torch.int32)


@st.composite
def convs(draw):
    """(rank, groups, inputs a group, outputs a group, kernel, stride, padding, dilation, spatial)"""
    rank = draw(st.integers(1, 2))
    groups, inputs, outputs = draw(
        st.one_of(
            st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
            st.tuples(st.integers(2, 7), st.just(1), st.integers(1, 3)),  # depthwise, with a multiplier
        )
    )
    kernel, stride, dilation = (draw(pairs) for _ in range(3))
    padding = draw(st.lists(st.integers(0, 3), min_size=2, max_size=2))
    spatial = [d * (k - 1) + 1 + draw(st.integers(0, 4)) for d, k in zip(dilation, kernel, strict=True)]
    if rank == 1:
        kernel[0] = stride[0] = dilation[0] = spatial[0] = 1
        padding[0] = 0
    return rank, groups, inputs, outputs, kernel, stride, padding, dilation, spatial


@settings(max_examples=60)
@given(convs(), dtypes, kinds, zeros, seeds)
@example((2, 1, 1000, 1, [1, 1], [1, 1], [0, 0], [1, 1], [1, 1]), torch.uint8, "ends", 0, 7)
@example((2, 7, 1, 1, [3, 3], [2, 2], [1, 1], [1, 1], [5, 5]), torch.int8, "ends", 2, 8)
def test_conv_int32(case, dtype, kind, which, seed):
    rank, groups, inputs, outputs, kernel, stride, padding, dilation, spatial = case
    q = random_integers(seed, (2, groups * inputs, *spatial), dtype, kind)
    weight = random_integers(seed + 1, (groups * outputs, inputs, *kernel), torch.int8, kind).clamp(min=-127)
    bias, zero = integer_bias(seed + 2, groups * outputs), zero_point(dtype, which)
    expected = conv(q.numpy().astype(int) - zero, weight.numpy(), bias.numpy(), stride, padding, dilation, groups)
    if rank == 1:
        q, weight, expected = q[:, :, 0], weight[:, :, 0], expected[:, :, 0]
        stride, padding, dilation = stride[1:], padding[1:], dilation[1:]
    got = check_inference(OPS.conv_int32, q, weight, bias, stride, padding, dilation, groups, zero)
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got.numpy(), expected)


@settings(max_examples=60)
@given(convs(), st.integers(0, 2), dtypes, kinds, zeros, seeds)
def test_conv_transpose_int32(case, extra, dtype, kind, which, seed):
    rank, groups, inputs, outputs, kernel, stride, padding, dilation, spatial = case
    # Padding may crop no more than there is, and the extra row must be less than a stride or a dilation.
    grown = [(h - 1) * s + d * (k - 1) + 1 for h, s, d, k in zip(spatial, stride, dilation, kernel, strict=True)]
    padding = [min(p, (g - 1) // 2) for p, g in zip(padding, grown, strict=True)]
    added = [min(extra, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
    q = random_integers(seed, (2, groups * inputs, *spatial), dtype, kind)
    weight = random_integers(seed + 1, (groups * inputs, outputs, *kernel), torch.int8, kind).clamp(min=-127)
    bias, zero = integer_bias(seed + 2, groups * outputs), zero_point(dtype, which)
    options = stride, padding, added, groups, dilation
    expected = conv_transpose(q.numpy().astype(int) - zero, weight.numpy(), bias.numpy(), *options)
    if rank == 1:
        q, weight, expected = q[:, :, 0], weight[:, :, 0], expected[:, :, 0]
        options = stride[1:], padding[1:], added[1:], groups, dilation[1:]
    got = check_inference(OPS.conv_transpose_int32, q, weight, bias, *options, zero)
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got.numpy(), expected)


@settings(max_examples=40)
@given(
    st.lists(st.integers(2, 3), min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(1, 9),
    dtypes,
    kinds,
    zeros,
    seeds,
)
def test_linear_int32(leading, inputs, outputs, dtype, kind, which, seed):
    q = random_integers(seed, (*leading, inputs), dtype, kind)
    weight = random_integers(seed + 1, (outputs, inputs), torch.int8, kind).clamp(min=-127)
    bias, zero = integer_bias(seed + 2, outputs), zero_point(dtype, which)
    got = check_inference(OPS.linear_int32, q, weight, bias, zero)
    expected = (q.numpy().astype(np.int64) - zero) @ weight.numpy().astype(np.int64).T + bias.numpy()
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got.numpy(), expected)


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 6), dtypes, kinds, zeros, zeros, seeds)
def test_matmul_int32(rows, depth, columns, dtype, kind, left_zero, right_zero, seed):
    left = random_integers(seed, (2, 3, rows, depth), dtype, kind)
    right = random_integers(seed + 1, (3, depth, columns), dtype, kind)
    zeros = zero_point(dtype, left_zero), zero_point(dtype, right_zero)
    got = check_inference(OPS.matmul_int32, left, right, *zeros)
    values = [t.numpy().astype(np.int64) - zero for t, zero in zip((left, right), zeros, strict=True)]
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got.numpy(), np.einsum("bhij,hjk->bhik", *values))


@settings(max_examples=40)
@given(dtypes, kinds, zeros, zeros, seeds)
def test_mul_int32_by_one_factor_a_channel(dtype, kind, left_zero, right_zero, seed):
    """The last product of squeeze and excitation: [N, C, H, W] by [N, C, 1, 1]."""
    left = random_integers(seed, (2, 5, 3, 4), dtype, kind)
    right = random_integers(seed + 1, (2, 5, 1, 1), dtype, kind)
    zeros = zero_point(dtype, left_zero), zero_point(dtype, right_zero)
    got = check_inference(OPS.mul_int32, left, right, *zeros, batched=2)
    values = [t.numpy().astype(np.int64) - zero for t, zero in zip((left, right), zeros, strict=True)]
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got.numpy(), values[0] * values[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_exact_up_to_the_ends_of_int32(dtype):
    """66051 products of 255 or so: just below 2**31, where float32 sums would be off by hundreds."""
    low, high = DTYPES[dtype]
    depth = (2**31 - 1) // (255 * 127)
    weight = torch.full((1, depth), 127, dtype=torch.int8)
    weight[0, 0] = 1
    bias = torch.zeros(1, dtype=torch.int32)
    full = torch.full((1, depth), high).to(dtype)
    assert OPS.linear_int32(full, weight, bias, low).tolist() == [[255 * 127 * (depth - 1) + 255]]
    maps = full.reshape(1, depth, 1, 1), weight.reshape(1, depth, 1, 1), bias
    assert OPS.conv_int32(*maps, [1, 1], [0, 0], [1, 1], 1, low).flatten().tolist() == [255 * 127 * (depth - 1) + 255]
