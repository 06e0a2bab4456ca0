"""Sums on a grid of powers of two, against exact fractions; tables, against indexing."""

from fractions import Fraction

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from integer_arithmetic import DTYPES, check_inference, half_to_even, random_integers

OPS = torch.ops.planish

dtypes = st.sampled_from([*DTYPES])
zeros = st.sampled_from([0.0, 0.3, 0.5, 1.0])  # where in the range of the dtype zero points stand


def at(dtype: torch.dtype, part: float) -> int:
    low, high = DTYPES[dtype]
    return round(low + part * (high - low))


@st.composite
def grids(draw):
    """Two factors and a shift whose sums stay below 2**22, the bound that lowering keeps."""
    shift = draw(st.integers(0, 20))
    left = draw(st.integers(-(2**22) // 255, 2**22 // 255))
    room = 2**22 // 255 - abs(left)
    return left, draw(st.integers(-room, room)), shift


@settings(max_examples=60)
@given(grids(), dtypes, zeros, zeros, zeros, st.sampled_from(["all", "ends"]), st.integers(0, 2**32 - 1))
@example((1, 1, 1), torch.int8, 0.5, 0.5, 0.5, "all", 0)  # halves
@example((16448, 0, 0), torch.uint8, 0.0, 0.0, 0.0, "ends", 1)
def test_add_int8_is_the_exact_sum_rounded_once(grid, dtype, zero_left, zero_right, zero, kind, seed):
    (left, right, shift), (low, high) = grid, DTYPES[dtype]
    a = random_integers(seed, (2, 3, 4), dtype, kind)
    b = random_integers(seed + 1, (2, 1, 4), dtype, kind)
    zero_left, zero_right, zero = (at(dtype, part) for part in (zero_left, zero_right, zero))
    args = zero_left, zero_right, left, right, shift, zero, low, high, dtype
    got = check_inference(OPS.add_int8, a, b, *args, batched=2)
    pairs = zip(a.flatten().tolist(), b.expand(2, 3, 4).flatten().tolist(), strict=True)
    sums = [Fraction(left * (p - zero_left) + right * (q - zero_right), 2**shift) for p, q in pairs]
    assert got.flatten().tolist() == [half_to_even(value, zero, low, high) for value in sums]
    # Float32 arithmetic in any order gives the same: all products and sums are whole numbers below 2**24.
    p, q = (np.float32(v.expand(2, 3, 4).numpy()) for v in (a, b))
    total = np.float32(left) * p + (np.float32(right) * q + np.float32(-left * zero_left - right * zero_right))
    steps = np.clip(np.rint(total * np.float32(2.0**-shift)) + zero, low, high)
    np.testing.assert_array_equal(got.numpy(), steps)


@settings(max_examples=60)
@given(dtypes, dtypes, st.integers(0, 2**32 - 1))
def test_lookup_int8(source, target, seed):
    q = random_integers(seed, (2, 5, 3), source)
    table = random_integers(seed + 1, (256,), target)
    got = check_inference(OPS.lookup_int8, q, table)
    assert got.dtype == target
    np.testing.assert_array_equal(got.numpy(), table.numpy()[q.numpy().astype(int) - DTYPES[source][0]])


def test_a_table_of_all_integers_is_the_identity():
    for dtype, (low, high) in DTYPES.items():
        every = torch.arange(low, high + 1).to(dtype)
        assert torch.equal(OPS.lookup_int8(every, every), every)
