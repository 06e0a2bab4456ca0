"""Pointwise and dense kernels against PyTorch in float64."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from planish.backends.tvm.kernels import Dense, Epilogue, Pointwise, describe

from .conftest import Runner, close

# batch, height, width, in, out: odd channels, tails in pixels and vectors, one pixel, more than one image
POINTWISE = [
    (1, 7, 7, 32, 48),
    (3, 5, 9, 19, 70),
    (1, 1, 1, 100, 130),
    (2, 14, 14, 3, 17),
    (1, 13, 11, 64, 5),
]


@pytest.mark.parametrize(("batch", "height", "width", "inputs", "outputs"), POINTWISE)
def test_pointwise(runner, batch, height, width, inputs, outputs):
    x = torch.randn(batch, inputs, height, width)
    weight, bias = torch.randn(outputs, inputs, 1, 1), torch.randn(outputs)
    got = runner.images(Pointwise(batch, height, width, inputs, outputs), x, weight, bias)
    close(got, F.conv2d(x.double(), weight.double(), bias.double()), inputs)


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (2, 3)])
def test_pointwise_with_a_batch_known_at_run_time(runner, size):
    spec = Pointwise(None, *size, 20, 40)
    weight = torch.randn(40, 20, 1, 1)
    for batch in (1, 3, 6):
        x = torch.randn(batch, 20, *size)
        close(runner.images(spec, x, weight, None), F.conv2d(x.double(), weight.double()), 20)


def test_a_missing_bias_is_zero(widest):
    x, weight = torch.randn(1, 8, 3, 3), torch.randn(8, 8)
    spec = Pointwise(1, 3, 3, 8, 8)
    assert torch.equal(widest.images(spec, x, weight, None), widest.images(spec, x, weight, torch.zeros(8)))


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_residual_is_added_before_or_after_the_activation(runner, order):
    x, added = torch.randn(2, 12, 5, 5), torch.randn(2, 20, 5, 5)
    weight, bias = torch.randn(20, 12, 1, 1), torch.randn(20)
    spec = Pointwise(2, 5, 5, 12, 20, Epilogue("relu6", residual=order))
    got = runner.images(spec, x, weight, bias, residual=added)
    y = F.conv2d(x.double(), weight.double(), bias.double())
    wanted = (y + added).clamp(0, 6) if order == "before" else y.clamp(0, 6) + added
    close(got, wanted, 12)


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 16), (19, 70), (3, 20)])
def test_a_map_larger_than_the_cache_gives_the_same(widest, inputs, outputs):
    """Prefetches and narrower tiles change no sum."""
    spec, x = Pointwise(1, 13, 11, inputs, outputs, Epilogue("relu")), torch.randn(1, inputs, 13, 11)
    weight, bias = torch.randn(outputs, inputs, 1, 1), torch.randn(outputs)
    small = Runner(replace(widest.machine, arithmetic=replace(widest.arithmetic, cache=1024)))
    got = small.images(spec, x, weight, bias)
    close(got, F.relu(F.conv2d(x.double(), weight.double(), bias.double())), inputs)
    assert torch.equal(got, widest.images(spec, x, weight, bias))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 100, 1000), (5, 33, 17), (64, 48, 200), (7, 3, 5)])
def test_dense(runner, rows, inputs, outputs):
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    added = torch.randn(rows, outputs)
    spec = Dense(rows, inputs, outputs, Epilogue("relu", residual="before"))
    got = runner.call(spec, [x.numpy()], (weight, bias), added.numpy())
    wanted = F.relu(F.linear(x.double(), weight.double(), bias.double()) + added)
    close(torch.from_numpy(got), wanted, inputs)


def test_dense_with_rows_known_at_run_time(runner):
    spec, weight, bias = Dense(None, 33, 17), torch.randn(17, 33), torch.randn(17)
    for rows in (1, 4, 11):
        x = torch.randn(rows, 33)
        got = torch.from_numpy(runner.call(spec, [x.numpy()], (weight, bias)))
        close(got, F.linear(x.double(), weight.double(), bias.double()), 33)


def test_descriptions_name_family_and_tile(widest):
    lanes = widest.arithmetic.lanes
    assert describe(Pointwise(1, 7, 7, 64, 64), widest.arithmetic).startswith("pointwise, tile ")
    assert describe(Dense(1, 64, 64), widest.arithmetic).endswith(f"vectors of {lanes}")
