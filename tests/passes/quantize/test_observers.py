"""Statistics and observers against numpy on all the data at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.passes.quantize.observers import OBSERVERS, ObserverOptions, Statistics
from planish.passes.quantize.observers.histogram import BINS, HALF, Histogram
from planish.passes.quantize.scales import Levels

INT8, UINT8, CENTRED = Levels(-128, 127), Levels(0, 255), Levels(-128, 127, symmetric=True)


def watch(batches, **options) -> Statistics:
    seen = Statistics(**options)
    for batch in batches:
        seen.observe(batch)
        seen.end_batch()
    return seen


def range_of(name, batches, levels=INT8, axis=None, percentile=99.99):
    observer = OBSERVERS[name](levels, ObserverOptions(percentile))
    low, high = observer.range(watch(batches, axis=axis, histogram=observer.needs_histogram))
    return (low.numpy(), high.numpy()) if axis is not None else (float(low), float(high))


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(5, 4, 6, generator=generator) * 3.0**k for k in range(4)]


def test_min_max_of_a_tensor_and_of_channels_is_exact(batches):
    whole = torch.cat(batches).numpy()
    assert range_of("min-max", batches) == (whole.min(), whole.max())
    low, high = range_of("min-max", batches, axis=1)
    np.testing.assert_array_equal(low, whole.min((0, 2)))
    np.testing.assert_array_equal(high, whole.max((0, 2)))


def test_moving_average_follows_its_recurrence(batches):
    low, high = (np.float64(end(batches[0].numpy())) for end in (np.min, np.max))
    for batch in batches[1:]:
        low = 0.75 * low + 0.25 * np.float64(batch.numpy().min())
        high = 0.75 * high + 0.25 * np.float64(batch.numpy().max())
    got = OBSERVERS["moving-average"]().range(watch(batches, momentum=0.25))
    np.testing.assert_allclose(tuple(map(float, got)), (low, high), rtol=1e-14)  # float64 in another order


def test_a_batch_of_several_tensors_counts_once_in_the_moving_average():
    apart = Statistics()
    apart.observe(torch.tensor([0.0, 1.0]))
    apart.end_batch()
    apart.observe(torch.tensor([-4.0, 2.0]))
    apart.observe(torch.tensor([0.0, 8.0]))
    apart.end_batch()
    together = watch([torch.tensor([0.0, 1.0]), torch.tensor([-4.0, 2.0, 8.0])])
    assert (apart.average_low, apart.average_high) == (together.average_low, together.average_high)
    assert (apart.values, together.values) == (6, 5)


@given(exponent=st.integers(-60, 60), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_a_histogram_equals_numpys(exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(70_000, generator=generator).mul_(2.0**exponent)  # over one chunk of 2**16
    values[::3] = 0.0
    histogram = Histogram()
    histogram.add(values, float(values.abs().max()))
    assert 2.0**histogram.exponent / 2 <= float(values.abs().max()) < 2.0**histogram.exponent
    index = np.trunc(values.double().numpy() / histogram.width).astype(np.int64)
    np.testing.assert_array_equal(histogram.counts.numpy(), np.bincount(index + HALF, minlength=BINS))
    edges = histogram.edges()
    at = int(histogram.counts[HALF + 1 :].argmax()) + HALF + 1
    inside = (values.double().numpy() >= edges[at]) & (values.double().numpy() < edges[at + 1])
    assert inside.sum() == histogram.counts[at]


@given(
    exponents=st.lists(st.integers(-140, 120), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    name=st.sampled_from([name for name, observer in OBSERVERS.items() if name != "moving-average"]),
)
def test_ranges_do_not_depend_on_how_data_is_split_or_ordered(exponents, seed, name):
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(50, generator=generator) * 2.0**e for e in exponents]
    one = range_of(name, [torch.cat(batches)])
    assert range_of(name, batches) == one
    assert range_of(name, batches[::-1]) == one


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("axis", [None, 1])
def test_percentile_equals_numpy_to_one_bin(percentile, axis):
    generator = torch.Generator().manual_seed(7)
    channels = torch.tensor([1.0, 0.01, 20.0]).view(1, 3, 1)
    batches = [torch.randn(40, 3, 500, generator=generator) * channels * k for k in (1, 0.5, 3)]
    low, high = range_of("percentile", batches, axis=axis, percentile=percentile)
    whole = torch.cat(batches).double().numpy()
    over = (0, 2) if axis == 1 else None
    bin_width = 2 * np.abs(whole).max(over) / HALF  # the span is below twice the largest magnitude
    # Between two values of a sparse tail numpy may put the percentile anywhere: take both its neighbours.
    for got, level in ((low, 100 - percentile), (high, percentile)):
        below = np.percentile(whole, level, axis=over, method="lower")
        above = np.percentile(whole, level, axis=over, method="higher")
        assert np.all(got >= below - bin_width) and np.all(got <= above + bin_width)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-30, -1.0, 3e38, -3e38])
def test_a_constant_gives_that_constant(name, value):
    values = torch.full((10,), value)
    low, high = range_of(name, [values, values])
    # Zero is in every range of integers, so an observer may give it for the end on its side.
    assert {low, high} <= {0.0, float(values[0])}
    assert (low if value < 0 else high) == float(values[0])


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_told_and_not_taken_in(name, bad):
    seen = Statistics(histogram=True)
    seen.observe(torch.tensor([1.0, 2.0]))
    ends = seen.observe(torch.tensor([1.0, bad, 5.0]))
    seen.end_batch()
    assert not np.isfinite(ends).all()
    low, high = OBSERVERS[name]().range(seen)
    assert seen.values == 2 and 0 <= float(low) <= 1.001  # a percentile is exact to a bin
    assert float(high) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("name", OBSERVERS)
def test_no_values_at_all_give_a_range_of_zero(name):
    assert range_of(name, [torch.zeros(0, 3), torch.zeros(2, 0)]) == (0.0, 0.0)


def test_memory_does_not_grow_with_the_data():
    seen = watch([torch.rand(100_000)] * 5, histogram=True)
    (histogram,) = seen.histograms
    assert histogram.counts.numel() == BINS
    assert int(histogram.counts.sum()) == seen.values == 500_000


def test_one_histogram_serves_all_observers(batches):
    seen = watch(batches, histogram=True)
    for name, observer in OBSERVERS.items():
        low, high = observer().range(seen)
        assert range_of(name, batches) == (float(low), float(high))
