"""Rounding by addition against PyTorch: equal bits, ties and ends of the range among them."""

import numpy as np
import pytest
import torch
import tvm

from planish.backends.tvm.arithmetic.rounding import nearest, with_rounder
from planish.backends.tvm.arithmetic.tir import T
from planish.backends.tvm.kernels.builder import Kernel

SIZE = 64


def numbers() -> np.ndarray:
    ties = np.arange(-12, 12) + 0.5
    near = np.nextafter(ties.astype(np.float32), np.float32(0))
    ends = [-(2.0**22), 2.0**22, 2.0**22 - 0.5, -(2.0**22) + 0.5, 2.0**21 + 0.25, 0.0, -0.0, 1e-42, -1e-42, 0.49999997]
    return np.concatenate([ties, near, ends, np.linspace(-300, 300, 6)]).astype(np.float32)[:SIZE]


def computed(lanes: int, function, dtype: str) -> np.ndarray:
    with Kernel() as kernel:
        source, target = kernel.argument("source", (SIZE,)), kernel.argument("target", (SIZE,), dtype)
        with kernel.loop(SIZE // lanes) as i:
            x = source.scalar(i) if lanes == 1 else source.vector(i * lanes, lanes)
            target.store(i * lanes, function(x, lanes), lanes)
    result = tvm.runtime.tensor(np.zeros(SIZE, dtype))
    function_ = kernel.prim_func.with_attr("global_symbol", "kernel")
    tvm.compile(function_, tvm.target.Target("llvm"))["kernel"](tvm.runtime.tensor(numbers()), result)
    return result.numpy()


@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_nearest_is_half_to_even(lanes):
    assert np.array_equal(computed(lanes, nearest, "float32"), torch.from_numpy(numbers()).round().numpy())


@pytest.mark.parametrize("lanes", [1, 8])
def test_the_sum_holds_the_whole_number_in_its_lowest_bits(lanes):
    kind = "int32" if lanes == 1 else f"int32x{lanes}"
    bits = computed(lanes, lambda x, n: T.reinterpret(with_rounder(x, n), dtype=kind), "int32")
    wanted = torch.from_numpy(numbers()).round().int().numpy()
    assert np.array_equal(bits << 10 >> 10, wanted << 10 >> 10)
