"""Observers that search a range (histogram, entropy, mean-squared-error), against searches on the values themselves."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from planish.passes.quantize.observers import OBSERVERS, Statistics
from planish.passes.quantize.observers.histogram import Histogram
from planish.passes.quantize.observers.rounding_error import RoundingError
from planish.passes.quantize.observers.weights import WEIGHT_OBSERVERS
from planish.passes.quantize.scales import Levels

GENERATOR = torch.Generator().manual_seed(11)
VALUES = {
    "normal": torch.randn(60_000, generator=GENERATOR),
    "relu of a normal": torch.randn(60_000, generator=GENERATOR).relu(),
    "laplace": torch.randn(60_000, generator=GENERATOR).sign() * torch.rand(60_000, generator=GENERATOR).log(),
    "uniform": torch.rand(60_000, generator=GENERATOR) * 3 - 1,
    "outlier": torch.cat([torch.randn(60_000, generator=GENERATOR), torch.tensor([60.0])]),
    "negative": -torch.rand(60_000, generator=GENERATOR).square(),
}
LEVELS = {
    "int8": Levels(-128, 127),
    "uint8": Levels(0, 255),
    "int8 symmetric": Levels(-128, 127, symmetric=True),
    "int4": Levels(-8, 7),
    "int16": Levels(-32768, 32767),
}


def seen(values: torch.Tensor) -> Statistics:
    statistics = Statistics(histogram=True)
    statistics.observe(values)
    statistics.end_batch()
    return statistics


def error(values: torch.Tensor, low: float, high: float, levels: Levels) -> float:
    """The sum of squared errors of quantizing the values, in float64."""
    exact = values.double().numpy()
    (scale,), (zero_point,) = levels.grids(np.array([low]), np.array([high]))
    q = np.clip(np.rint(exact / scale) + zero_point, levels.quant_min, levels.quant_max)
    return float(np.square((q - zero_point) * scale - exact).sum())


def chosen(name: str, values: torch.Tensor, levels: Levels) -> tuple[float, float]:
    low, high = OBSERVERS[name](levels).range(seen(values))
    return float(low), float(high)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_error_from_a_histogram_is_that_of_the_values(kind, levels):
    values = VALUES[kind]
    histogram = Histogram()
    histogram.add(values, float(values.abs().max()))
    ends = np.array([[-2.0, 3.0], [-0.5, 0.5], [-0.01, 4.0], [-4.0, 0.02], [-1.0, 2.0]])
    got = RoundingError(histogram, levels).of(ends[:, 0], ends[:, 1])
    expected = [error(values, low, high, levels) for low, high in ends]
    # Values are taken as spread evenly in their bins: with 60,000 of them chance alone makes a per cent or two. Those
    # beyond the ends are off by a part of a bin. Levels finer than a bin are 1/8 of bins apart at the least.
    np.testing.assert_allclose(got, expected, rtol=0.05)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("name", ["int8", "uint8", "int8 symmetric", "int4"])
def test_mean_squared_error_is_as_good_as_a_search_over_all_pairs_of_ends(kind, name):
    values, levels = VALUES[kind], LEVELS[name]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    shares = np.linspace(0.04, 1, 25)
    if levels.symmetric:
        pairs = [(-max(-low, high) * share, max(-low, high) * share) for share in shares]
    else:
        pairs = list(itertools.product(low * shares if low else [0.0], high * shares if high else [0.0]))
    least = min(error(values, *pair, levels) for pair in pairs)
    # One end at a time may end beside the best pair, and errors from a histogram are off by a per cent or two.
    assert error(values, *chosen("mean-squared-error", values, levels), levels) <= 1.05 * least


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_histogram_search_never_does_worse_than_min_max(kind, levels):
    values = VALUES[kind]
    found = error(values, *chosen("histogram", values, levels), levels)
    assert found <= 1.02 * error(values, float(values.min()), float(values.max()), levels)  # the histogram's own error


def test_the_histogram_search_cuts_an_outlier_and_leaves_a_dense_distribution():
    many = torch.cat([torch.randn(200_000, generator=GENERATOR), torch.tensor([60.0])])  # it is less than one step
    low, high = chosen("histogram", many, LEVELS["int4"])
    assert -5 < low < -1.5 and 1.5 < high < 5
    low, high = chosen("histogram", VALUES["uniform"], LEVELS["int8"])
    assert (low, high) == pytest.approx((-1.0, 2.0), abs=0.03)  # a hundredth of the range


def divergence(counts: np.ndarray, threshold: int, levels: int) -> float:
    """Migacz's loop for one threshold, bin by bin; scipy has the divergence itself."""
    reference = counts[:threshold].astype(np.float64)
    reference[-1] += counts[threshold:].sum()
    candidate = np.zeros(threshold)
    for level in range(levels):
        bins = [b for b in range(threshold) if b * levels // threshold == level]
        held = [b for b in bins if reference[b] > 0]
        for b in held:
            candidate[b] = counts[bins].sum() / len(held)
    return stats.entropy(reference, candidate)


@pytest.mark.parametrize("kind", ["relu of a normal", "outlier"])
def test_entropy_chooses_a_threshold_of_least_divergence(kind):
    values, levels = VALUES[kind].relu(), Levels(0, 15)  # few levels keep the slow loop short
    (histogram,) = seen(values).histograms
    counts = histogram.counts.numpy()[len(histogram.counts) // 2 :].copy()
    counts[0] = counts[1]
    low, high = chosen("entropy", values, levels)
    assert low == 0.0
    top = int(np.ceil(float(values.max()) / histogram.width))
    thresholds = np.unique(np.linspace(16, top, 128).astype(int))
    losses = [divergence(counts, threshold, 16) for threshold in thresholds[::4]]
    got = divergence(counts, min(round(high / histogram.width), top), 16)
    assert got <= min(losses) + 1e-9


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("name", ["int8", "uint8", "int8 symmetric"])
def test_entropy_keeps_the_bulk_of_a_distribution(kind, name):
    low, high = chosen("entropy", VALUES[kind], LEVELS[name])
    beyond = ((VALUES[kind] < low) | (VALUES[kind] > high)).double().mean()
    assert float(beyond) < 0.05
    if kind == "outlier":
        assert high < 10


@pytest.mark.parametrize("name", ["histogram", "entropy", "mean-squared-error"])
def test_each_channel_has_a_range_of_its_own(name):
    rows = torch.stack([VALUES["normal"], VALUES["uniform"] * 100, VALUES["negative"] * 1e-3])
    together = Statistics(axis=0, histogram=True)
    together.observe(rows)
    together.end_batch()
    low, high = OBSERVERS[name]().range(together)
    for row, *ends in zip(rows, low, high, strict=True):
        assert tuple(map(float, ends)) == chosen(name, row, LEVELS["int8"])


@pytest.mark.parametrize("quant_max", [7, 127])
def test_the_weight_search_finds_the_best_of_its_shares(quant_max):
    rows = torch.stack([VALUES["normal"][:500], VALUES["laplace"][:500] * 1e-4, torch.zeros(500)])
    got = WEIGHT_OBSERVERS["mean-squared-error"](rows, quant_max).numpy()
    exact = rows.double().numpy()
    for row, magnitude in zip(exact[:2], got[:2], strict=True):
        errors = {}
        for share in np.arange(1, 65) / 64:
            scale = np.abs(row).max() * share / quant_max
            levels = np.clip(np.rint(row / scale), -quant_max, quant_max)
            errors[np.abs(row).max() * share] = np.square(levels * scale - row).sum()
        best = min(errors, key=errors.__getitem__)
        assert errors[min(errors, key=lambda m: abs(m - magnitude))] <= errors[best] * 1.001  # float32 rounds scales
    assert got[2] == 0.0
    assert np.all(got <= np.abs(exact).max(1))
    np.testing.assert_array_equal(WEIGHT_OBSERVERS["min-max"](rows, quant_max).numpy(), np.abs(exact).max(1))
