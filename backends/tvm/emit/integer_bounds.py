"""What weights prove about the sums of a product, whatever its input."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.requantize import Constant

LARGEST_SUM = 2**22 - 1  # 1.5 * 2**23 + a sum of this size is a float32 in whole steps
LARGEST_STEP = np.iinfo(np.int16).max - 1  # of the product with the factor, before it is rounded
INT32 = np.iinfo(np.int32)


def sum_ends(weight: np.ndarray, bias: np.ndarray, zero_point: int, activation: str) -> np.ndarray:
    """[2, outputs] int64: the least and the greatest sum of each output.

    weight: [outputs, ...] integers; bias: [outputs]; zero_point: of the inputs, stored as `activation`. An input on
    padding counts as its zero point, which takes no part in a sum.
    """
    ends = np.iinfo(activation)
    lowest, highest = min(0, int(ends.min) - zero_point), max(0, int(ends.max) - zero_point)
    matrix = weight.reshape(len(weight), -1)
    positive = np.maximum(matrix, 0).sum(1, dtype=np.int64)
    negative = np.minimum(matrix, 0).sum(1, dtype=np.int64)
    own = np.asarray(bias, np.int64).reshape(-1)
    return np.stack([own + positive * lowest + negative * highest, own + positive * highest + negative * lowest])


def with_small_sums(arrays: list[Any], activation: str) -> list[Any] | None:
    """Arrays of a product of the same bytes whose sums are small, as `Requantize.small` says; None if there are none.

    arrays: weight, bias, factors, constants, zero point, as `arrays_of` gives them. The sums of an output whose weights
    nearly vanish are large, because its factor is tiny; where every input gives the same byte, it becomes a bias.
    """
    weight, bias, factors, constants, zero_point = arrays
    ends = sum_ends(weight, bias, zero_point, activation)
    factors = np.broadcast_to(np.asarray(factors, np.float32).reshape(-1), ends.shape[1:])
    largest = np.abs(ends).max(0)
    large = (largest > LARGEST_SUM) | (largest * np.abs(factors.astype(np.float64)) > LARGEST_STEP)
    if not large.any():
        return arrays
    if ends[:, large].min() < INT32.min or ends[:, large].max() > INT32.max:
        return None  # they may wrap around
    steps = np.rint(ends[:, large].astype(np.float32) * factors[large])
    least, greatest = np.clip(steps, constants[Constant.LOW], constants[Constant.HIGH])
    if (least != greatest).any():
        return None
    weight, bias, factors = weight.copy(), np.array(bias).reshape(-1), factors.copy()
    weight[large], bias[large], factors[large] = 0, least, 1.0
    return [weight, bias, factors, constants, zero_point]
