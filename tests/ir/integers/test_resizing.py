"""Resizing with tables, against a loop over output pixels."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_arithmetic import DTYPES, check_inference, random_integers

OPS = torch.ops.planish

dtypes = st.sampled_from([*DTYPES])
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 5)


def tables(generator: np.random.Generator, have: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and weights; the last position may have a weight, which then mixes it with itself."""
    return generator.integers(0, have, wanted), generator.choice([0, 1, 700, 1024, 2047], wanted)


@settings(max_examples=50)
@given(sizes, sizes, sizes, sizes, dtypes, seeds)
def test_upsample_nearest2d_int8(height, width, out_height, out_width, dtype, seed):
    q = random_integers(seed, (2, 3, height, width), dtype)
    generator = np.random.default_rng(seed)
    rows, columns = generator.integers(0, height, out_height), generator.integers(0, width, out_width)
    positions = (torch.from_numpy(p).to(torch.int32) for p in (rows, columns))
    got = check_inference(OPS.upsample_nearest2d_int8, q, *positions)
    assert got.dtype == dtype
    for i, j in np.ndindex(out_height, out_width):
        assert torch.equal(got[:, :, i, j], q[:, :, rows[i], columns[j]])


@settings(max_examples=50)
@given(sizes, sizes, sizes, sizes, dtypes, st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from(["all", "ends"]), seeds)
def test_upsample_bilinear2d_int32(height, width, out_height, out_width, dtype, part, kind, seed):
    low, high = DTYPES[dtype]
    zero = round(low + part * (high - low))
    q = random_integers(seed, (2, 3, height, width), dtype, kind)
    generator = np.random.default_rng(seed)
    rows, row_weights = tables(generator, height, out_height)
    columns, column_weights = tables(generator, width, out_width)
    integers = (torch.from_numpy(t).to(torch.int32) for t in (rows, row_weights, columns, column_weights))
    got = check_inference(OPS.upsample_bilinear2d_int32, q, *integers, zero)
    assert got.dtype == torch.int32
    values = q.numpy().astype(np.int64) - zero
    for i, j in np.ndindex(out_height, out_width):
        y, x, v, u = rows[i], columns[j], row_weights[i], column_weights[j]
        below, right = min(y + 1, height - 1), min(x + 1, width - 1)
        upper = (2048 - u) * values[:, :, y, x] + u * values[:, :, y, right]
        lower = (2048 - u) * values[:, :, below, x] + u * values[:, :, below, right]
        np.testing.assert_array_equal(got[:, :, i, j].numpy(), (2048 - v) * upper + v * lower)
