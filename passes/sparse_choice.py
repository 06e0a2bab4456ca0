"""Which weights of a layer go: scores, and the lowest of all or of every block."""

from collections.abc import Callable

import numpy as np


def _lamp(magnitude: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The share of a weight's square in the squares of all that are not smaller: comparable between layers."""
    squares = np.square(magnitude, dtype=np.float64)
    order = np.argsort(squares, kind="stable")
    remaining = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = np.divide(squares[order], remaining, out=np.zeros_like(squares), where=remaining > 0)
    return scores


# A layer's magnitudes (flat) -> its scores. What is zero already goes first, whatever its score.
IMPORTANCE: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    # Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.
    "magnitude": lambda magnitude, rng: magnitude,
    # Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
    "lamp": _lamp,
    # The baseline that every criterion has to beat.
    "random": lambda magnitude, rng: rng.random(magnitude.shape),
}


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """A mask of the `count` lowest scores of a vector; of equal ones the first."""
    if count <= 0:
        return np.zeros(scores.shape, bool)
    limit = np.partition(scores, count - 1)[count - 1]
    gone = scores < limit
    gone[np.flatnonzero(scores == limit)[: count - int(gone.sum())]] = True
    return gone


def lowest_of_blocks(scores: np.ndarray, dim: int, block: int, count: int) -> np.ndarray:
    """A mask of the `count` lowest scores of every `block` neighbours along a dim; of equal ones the first."""
    rows = np.moveaxis(scores, dim, -1)
    order = np.argsort(rows.reshape(-1, block), axis=1, kind="stable")
    gone = np.zeros(order.shape, bool)
    np.put_along_axis(gone, order[:, :count], True, axis=1)
    return np.moveaxis(gone.reshape(rows.shape), -1, dim)
