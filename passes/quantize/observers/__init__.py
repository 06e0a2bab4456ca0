"""Observers by name: from what was seen of an activation to the range that its levels cover."""

from .base import Observer, ObserverOptions
from .entropy import Entropy
from .histogram_search import HistogramSearch
from .mean_squared_error import MeanSquaredError
from .min_max import MinMax
from .moving_average import MovingAverage
from .percentile import Percentile
from .statistics import Statistics

__all__ = ["OBSERVERS", "Observer", "ObserverOptions", "Statistics"]

OBSERVERS: dict[str, type[Observer]] = {
    "min-max": MinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
    "histogram": HistogramSearch,
    "entropy": Entropy,
    "mean-squared-error": MeanSquaredError,
}
