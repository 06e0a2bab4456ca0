"""Weights in the order in which kernels read them."""

from __future__ import annotations

import numpy as np

from ..arithmetic import Arithmetic
from .shapes import round_up


def lanes_of(values: np.ndarray | None, channels: int, lanes: int, dtype: str = "float32") -> np.ndarray:
    """A value per channel, padded with zeros to whole vectors; all zeros for None."""
    padded = np.zeros(round_up(channels, lanes), dtype)
    if values is not None:
        padded[:channels] = np.asarray(values).reshape(-1)
    return padded


def vectors(matrix: np.ndarray, lanes: int, dtype: str) -> np.ndarray:
    """[channels, taps] as [vector][tap][lane], padded with zeros."""
    channels, taps = matrix.shape
    padded = np.zeros((round_up(channels, lanes), taps), dtype)
    padded[:channels] = matrix
    return padded.reshape(-1, lanes, taps).transpose(0, 2, 1).ravel()


def panels(matrix: np.ndarray, arithmetic: Arithmetic, vectors: int) -> np.ndarray:
    """[outputs, reduction] as one flat run of panels [reduction / group][vectors][lanes][group].

    The last panel may be narrower. What lies beyond the outputs, or beyond the reduction in its last group, is zero.
    """
    return arithmetic.stored(in_panels(matrix, arithmetic.lanes, arithmetic.group, vectors))


def in_panels(matrix: np.ndarray, lanes: int, group: int, vectors: int) -> np.ndarray:
    """`panels` in the matrix's own dtype."""
    outputs, reduction = matrix.shape
    count, steps = round_up(outputs, lanes) // lanes, round_up(reduction, group) // group
    padded = np.zeros((count * lanes, steps * group), matrix.dtype)
    padded[:outputs, :reduction] = matrix
    by_vector = padded.reshape(count, lanes, steps, group)
    return np.concatenate(
        [by_vector[first : first + vectors].transpose(2, 0, 1, 3).ravel() for first in range(0, count, vectors)]
    )
