"""Observers against numpy on all the data at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.passes.quantize.observers import BINS, OBSERVERS, MinMax, MovingAverage, ObserverOptions, Percentile


def feed(observer, batches):
    for batch in batches:
        observer.observe(batch)
        observer.end_batch()
    return tuple(end.numpy() for end in observer.range())


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(5, 4, 6, generator=generator) * 3.0**k for k in range(4)]


def test_min_max_of_a_tensor_and_of_channels_is_exact(batches):
    whole = torch.cat(batches).numpy()
    assert feed(MinMax(), batches) == (whole.min(), whole.max())
    low, high = feed(MinMax(axis=1), batches)
    np.testing.assert_array_equal(low, whole.min((0, 2)))
    np.testing.assert_array_equal(high, whole.max((0, 2)))


def test_moving_average_follows_its_recurrence(batches):
    low, high = batches[0].numpy().min(), batches[0].numpy().max()
    low, high = np.float64(low), np.float64(high)
    for batch in batches[1:]:
        low = 0.75 * low + 0.25 * np.float64(batch.numpy().min())
        high = 0.75 * high + 0.25 * np.float64(batch.numpy().max())
    got = feed(MovingAverage(options=ObserverOptions(momentum=0.25)), batches)
    np.testing.assert_allclose(got, (low, high), rtol=1e-14)  # float64 in another order of operations


def test_a_batch_of_several_tensors_counts_once_in_the_moving_average():
    apart, together = MovingAverage(), MovingAverage()
    apart.observe(torch.tensor([0.0, 1.0]))
    apart.end_batch()
    apart.observe(torch.tensor([-4.0, 2.0]))
    apart.observe(torch.tensor([0.0, 8.0]))
    apart.end_batch()
    assert feed(together, [torch.tensor([0.0, 1.0]), torch.tensor([-4.0, 2.0, 8.0])]) == apart.range()


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("axis", [None, 1])
def test_percentile_equals_numpy_to_one_bin(percentile, axis):
    generator = torch.Generator().manual_seed(7)
    channels = torch.tensor([1.0, 0.01, 20.0]).view(1, 3, 1)
    batches = [torch.randn(40, 3, 500, generator=generator) * channels * k for k in (1, 0.5, 3)]
    low, high = feed(Percentile(axis, ObserverOptions(percentile=percentile)), batches)
    whole = torch.cat(batches).double().numpy()
    over = (0, 2) if axis == 1 else None
    bin_width = 2 * np.abs(whole).max(over) / (BINS // 2)  # the span is below twice the largest magnitude
    # Between two values of a sparse tail numpy may put the percentile anywhere: take both its neighbours.
    for got, level in ((low, 100 - percentile), (high, percentile)):
        below = np.percentile(whole, level, axis=over, method="lower")
        above = np.percentile(whole, level, axis=over, method="higher")
        assert np.all(got >= below - bin_width) and np.all(got <= above + bin_width)


@given(
    exponents=st.lists(st.integers(-30, 30), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    percentile=st.sampled_from([60.0, 99.0, 99.99]),
)
def test_percentile_does_not_depend_on_how_data_is_split_or_ordered(exponents, seed, percentile):
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(50, generator=generator) * 2.0**e for e in exponents]
    options = ObserverOptions(percentile=percentile)
    one = feed(Percentile(options=options), [torch.cat(batches)])
    assert feed(Percentile(options=options), batches) == one
    assert feed(Percentile(options=options), batches[::-1]) == one


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-30, -1.0, 3e38, -3e38])
def test_a_constant_gives_that_constant(name, value):
    values = torch.full((10,), value)
    assert feed(OBSERVERS[name](), [values, values]) == (values[0], values[0])


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_told_and_not_taken_in(name, bad):
    observer = OBSERVERS[name]()
    observer.observe(torch.tensor([1.0, 2.0]))
    ends = observer.observe(torch.tensor([1.0, bad, 5.0]))
    observer.end_batch()
    assert not np.isfinite(ends).all()
    assert [float(end) for end in observer.range()] == pytest.approx(
        [1.0, 2.0], rel=1e-3
    )  # a percentile is exact to a bin


def test_memory_does_not_grow_with_the_data():
    observer = Percentile()
    for _ in range(5):
        observer.observe(torch.rand(100_000))
        observer.end_batch()
    (histogram,) = observer.histograms
    assert histogram.counts.numel() == BINS
    assert int(histogram.counts.sum()) == 500_000
