"""Expected values of functions of normally distributed values, in float64, element by element."""

import math
from collections.abc import Callable

import torch

_REACH = 8.5  # standard deviations on either side: what lies beyond has a probability below 2e-17
_POINTS = 4097
_BLOCK = 2**22  # numbers in use at once


def clipped(
    mean: torch.Tensor, variance: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of clip(x, low, high) for normal x, in closed form. Bounds may be infinite.

    Source: Nagel et al., appendix C of arXiv:1906.04721 (the mean); the second moment follows the same way, from
    the integral of z^2 phi(z), which is Phi(z) - z phi(z).
    """
    deviation = variance.sqrt()
    sound = torch.where(deviation > 0, deviation, 1.0)
    alpha, beta = (low - mean) / sound, (high - mean) / sound
    below, above = torch.special.ndtr(alpha), torch.special.ndtr(-beta)
    inside = torch.special.ndtr(beta) - below
    at_low, at_high = _density(alpha), _density(beta)
    first = mean * inside + deviation * (at_low - at_high) + _times(low, below) + _times(high, above)
    # About the first moment of x itself, so that little cancels.
    edges = _times(alpha, at_low) - _times(beta, at_high)
    second = variance * (inside + edges) + _times((low - mean).square(), below) + _times((high - mean).square(), above)
    spread = (second - (first - mean).square()).clamp(min=0)
    fixed = torch.minimum(torch.maximum(mean, low), high)
    return torch.where(deviation == 0, fixed, first), torch.where(deviation == 0, 0.0, spread)


def through(
    function: Callable[[torch.Tensor], torch.Tensor], mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of function(x) for normal x: the trapezoidal rule, which a Gaussian's tails make precise.

    A kink of the function costs some 1e-6 of the deviation times the change of slope. Equal pairs are computed once.
    """
    given = torch.stack([mean.reshape(-1), variance.reshape(-1)])
    unknown = given.isnan().any(0)
    pairs, place = torch.unique(given.masked_fill(unknown, 0.0), dim=1, return_inverse=True)
    z = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    weight = _density(z) * (z[1] - z[0])
    found = []
    for some in pairs.T.split(max(1, _BLOCK // _POINTS)):
        values = function(some[:, :1] + some[:, 1:].sqrt() * z)
        first = values @ weight
        found.append(torch.stack([first, (values - first[:, None]).square() @ weight], 1))
    moments = torch.cat(found)[place].masked_fill(unknown[:, None], torch.nan)
    return moments[:, 0].reshape(mean.shape), moments[:, 1].reshape(mean.shape)


def _density(z: torch.Tensor) -> torch.Tensor:
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


def _times(bound: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """A bound times its share of the probability; an infinite bound is never met."""
    return torch.where(bound.isinf(), 0.0, bound * share)
