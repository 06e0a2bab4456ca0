"""Sums, in float64, of what is seen of each channel."""

import torch


class Moments:
    """Mean and variance of each channel, over rows that arrive in batches."""

    def __init__(self):
        self.count = 0
        self._sum = self._squares = torch.zeros(1, dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        """rows [n, channels]."""
        rows = rows.double()
        self.count += len(rows)
        self._sum = self._sum + rows.sum(0).cpu()
        self._squares = self._squares + rows.square().sum(0).cpu()

    @property
    def mean(self) -> torch.Tensor:
        return self._sum / self.count

    @property
    def mean_square(self) -> torch.Tensor:
        return self._squares / self.count

    @property
    def variance(self) -> torch.Tensor:
        return (self.mean_square - self.mean.square()).clamp(min=0)
