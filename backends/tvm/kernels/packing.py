"""Weights in the order in which kernels read them."""

from __future__ import annotations

import numpy as np

from .shapes import round_up


def lanes_of(values: np.ndarray | None, channels: int, lanes: int) -> np.ndarray:
    """A value per channel, padded with zeros to whole vectors; all zeros for None."""
    padded = np.zeros(round_up(channels, lanes), np.float32)
    if values is not None:
        padded[:channels] = np.asarray(values).reshape(-1)
    return padded


def panels(matrix: np.ndarray, lanes: int, vectors: int) -> np.ndarray:
    """[outputs, reduction] as one flat run of panels [reduction][vectors][lanes]; the last panel may be narrower.

    Rows beyond the outputs are zero.
    """
    outputs, reduction = matrix.shape
    count = round_up(outputs, lanes) // lanes
    padded = np.zeros((count * lanes, reduction), np.float32)
    padded[:outputs] = matrix
    by_vector = padded.reshape(count, lanes, reduction)
    return np.concatenate(
        [by_vector[first : first + vectors].transpose(2, 0, 1).ravel() for first in range(0, count, vectors)]
    )
