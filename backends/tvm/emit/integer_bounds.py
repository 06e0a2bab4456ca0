"""What weights prove about the sums of a product, whatever its input."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic.rounding import ROUNDER
from ..kernels.requantize import Constant

LARGEST_SUM = 2**22 - 1  # 1.5 * 2**23 + a sum of this size is a float32 in whole steps
LARGEST_STEP = np.iinfo(np.int16).max - 129  # before it is rounded: a zero point may be added to it
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


def are_read(ends: np.ndarray, factors: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """[outputs]: whether every sum between the ends gives its own step, if it is read as `requantize.start` says.

    ends: [2, outputs]; factors: [outputs] float32. The bits of `ROUNDER` plus a sum are those of a float that grows
    with the sum: by as much up to LARGEST_SUM, by more above, by less below. So a sum beyond it gives the end of the
    grid, if one of LARGEST_SUM does.
    """
    low, high = float(constants[Constant.LOW]), float(constants[Constant.HIGH])
    at_largest = LARGEST_SUM * np.abs(factors.astype(np.float64))
    is_held = (np.abs(ends).max(0) <= LARGEST_SUM) | (at_largest > max(high, -low) + 1)
    bits = int(np.float32(ROUNDER).view(np.int32)) + ends
    is_finite = (bits > 0) & (bits < int(np.float32(np.inf).view(np.int32)))
    sums = np.where(is_finite, bits, 1).astype(np.int32).view(np.float32) - np.float32(ROUNDER)
    steps = np.abs(sums.astype(np.float64) * factors)
    return is_held & (is_finite & (steps <= LARGEST_STEP)).all(0)


def residual_fits(constants: np.ndarray, activation: str) -> bool:
    """Whether every sum with a residual, in steps, lies within int16 before it is held."""
    ends = np.iinfo(activation)
    own = max(abs(float(constants[end])) for end in (Constant.LOW, Constant.HIGH))
    other = max(abs(end - float(constants[Constant.ZERO_OTHER])) for end in (ends.min, ends.max))
    factors = (abs(float(constants[which])) for which in (Constant.FACTOR, Constant.FACTOR_OTHER))
    return sum(factor * extent for factor, extent in zip(factors, (own, other), strict=True)) <= LARGEST_STEP


def has_whole_sum(constants: np.ndarray, activation: str) -> bool:
    """Whether an addition is one of whole numbers, as `Requantize.whole` says."""
    return bool(constants[Constant.ROUNDER_OF_SUM]) and residual_fits(constants, activation)


def are_bounded(arrays: list[Any]) -> bool:
    """Whether no sum leaves int32 when it is multiplied, as `Requantize.bounded` says. arrays: as `with_small_sums`
    takes them."""
    return bool((np.abs(arrays[2]) < 1).all())


def with_small_sums(arrays: list[Any], activation: str) -> list[Any] | None:
    """Arrays of a product of the same bytes whose sums are small, as `Requantize.small` says; None if there are none.

    arrays: weight, bias, factors, constants, zero point, as `arrays_of` gives them. The sums of an output whose weights
    nearly vanish are large, because its factor is tiny; where every input gives the same byte, it becomes a bias.
    """
    weight, bias, factors, constants, zero_point = arrays
    ends = sum_ends(weight, bias, zero_point, activation)
    factors = np.broadcast_to(np.asarray(factors, np.float32).reshape(-1), ends.shape[1:])
    large = ~are_read(ends, factors, constants)
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
