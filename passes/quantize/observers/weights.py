"""Weight observers by name: the magnitude per channel that symmetric levels cover, from the weight itself."""

from collections.abc import Callable

import torch

_SHARES = 64  # candidates: 1/64 to 64/64 of a channel's largest magnitude


def min_max(rows: torch.Tensor, quant_max: int) -> torch.Tensor:
    """The largest magnitude of each row of [channels, values], float64.

    Source: Krishnamoorthi, section 3.1.1, 2018, arXiv:1806.08342.
    """
    return torch.linalg.vector_norm(rows, float("inf"), dim=1).double()


def mean_squared_error(rows: torch.Tensor, quant_max: int) -> torch.Tensor:
    """The magnitude for which levels -quant_max..quant_max make the least squared error in each row.

    Searched over 64 shares of the largest magnitude, on the values themselves.
    Source: Nagel et al., A white paper on neural network quantization, section 3.1, 2021, arXiv:2106.08295.
    """
    largest = min_max(rows, quant_max)
    best, least = largest, torch.full_like(largest, float("inf"))
    for share in range(_SHARES, 0, -1):
        magnitude = largest * (share / _SHARES)
        scale = (magnitude / quant_max).clamp(min=torch.finfo(torch.float32).tiny).float()[:, None]
        error = (rows / scale).round_().clamp_(-quant_max, quant_max).mul_(scale).sub_(rows).square_()
        error = error.sum(1, dtype=torch.float64)
        better = error < least
        best, least = torch.where(better, magnitude, best), torch.where(better, error, least)
    return best


WEIGHT_OBSERVERS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "min-max": min_max,
    "mean-squared-error": mean_squared_error,
}
