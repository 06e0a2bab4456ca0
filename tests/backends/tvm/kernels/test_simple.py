"""Pooling, elementwise and layout kernels, and the activation table."""

import pytest
import torch
from torch.nn import functional as F

from planish.backends.tvm.kernels import (
    ACTIVATIONS,
    Binary,
    Concat,
    Epilogue,
    GlobalMean,
    Pool,
    ToPacked,
    ToPlain,
    Unary,
    Window,
)
from planish.backends.tvm.kernels.epilogues import ACTIVATION_NAMES

from .conftest import close, unpacked

POOLS = {
    "resnet": Window((3, 3), (2, 2), (1, 1, 1, 1)),
    "halves": Window((2, 2), (2, 2)),
    "five by five": Window((5, 5), (1, 1), (2, 2, 2, 2)),
    "rows": Window((1, 3), (1, 2), (0, 0, 1, 1)),
}


@pytest.mark.parametrize("window", POOLS.values(), ids=POOLS)
def test_max_pool(runner, window):
    x = torch.randn(2, 19, 13, 17) - 5  # below zero: padding must not win
    got = runner.images(Pool(2, 13, 17, 19, window, "max"), x)
    top, _, left, _ = window.padding
    assert torch.equal(got.float(), F.max_pool2d(x, window.kernel, window.stride, (top, left)))


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("window", POOLS.values(), ids=POOLS)
def test_mean_pool(runner, window, count_padding):
    x = torch.randn(2, 19, 13, 17)
    got = runner.images(Pool(2, 13, 17, 19, window, "mean", count_padding), x)
    top, _, left, _ = window.padding
    wanted = F.avg_pool2d(x.double(), window.kernel, window.stride, (top, left), False, count_padding)
    close(got, wanted, window.kernel[0] * window.kernel[1])


@pytest.mark.parametrize(("batch", "channels"), [(1, 1280), (3, 21), (None, 40)])
def test_global_mean(runner, batch, channels):
    x = torch.randn(batch or 2, channels, 7, 5)
    got = runner.images(GlobalMean(batch, 7, 5, channels), x)
    close(got, x.double().mean((2, 3), keepdim=True), 35)


@pytest.mark.parametrize("batch", [2, None])
def test_concat(runner, batch):
    lanes = runner.arithmetic.lanes
    parts = [torch.randn(2, 3, 5, lanes * vectors) for vectors in (1, 3, 4)]
    spec = Concat(batch, 3, 5, tuple(part.shape[3] for part in parts))
    got = runner.call(spec, [part.numpy() for part in parts])
    assert torch.equal(torch.from_numpy(got), torch.cat(parts, 3))


@pytest.mark.parametrize("operation", ["add", "mul"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("batch", [2, None])
def test_binary(runner, operation, per_channel, batch):
    x, size = torch.randn(2, 21, 6, 5), (1, 1) if per_channel else (6, 5)
    y = torch.randn(2, 21, *size)
    spec = Binary(batch, 6, 5, 21, operation, per_channel, Epilogue("relu"))
    got = unpacked(runner.call(spec, [runner.packed(x), runner.packed(y)]), 21)
    wanted = x.double() + y if operation == "add" else x.double() * y
    close(got, F.relu(wanted), 1)


REFERENCES = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clip": lambda x: x.clamp(-1.5, 2.5),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_activation(runner, name):
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -100.0, -88.5, 0.0, 88.5, 100.0, 1e4])])
    x = x.reshape(1, -1, 1, 1)
    epilogue = Epilogue(name, (-1.5, 2.5) if name == "clip" else None)
    got = runner.images(Unary(1, 1, 1, x.shape[1], epilogue), x)
    # 2 ulp of exp, 1.5e-7 of erf, and a difference of numbers of order 1 in tanh.
    torch.testing.assert_close(got, REFERENCES[name](x.double()), rtol=1e-6, atol=6e-7)


def test_the_table_and_the_names_agree():
    assert tuple(ACTIVATIONS) == ACTIVATION_NAMES


@pytest.mark.parametrize("name", ["relu", "relu6"])
def test_not_a_number_stays_one(runner, name):
    x = torch.full((1, 8, 1, 1), float("nan"))
    assert runner.images(Unary(1, 1, 1, 8, Epilogue(name)), x).isnan().all()


@pytest.mark.parametrize("batch", [2, None])
def test_layouts_there_and_back(runner, batch):
    x = torch.randn(2, 19, 6, 7)
    packed = runner.call(ToPacked(batch, 6, 7, 19), [x.numpy()])
    assert torch.equal(unpacked(packed, 19).float(), x)
    assert not packed[..., 19:].any()
    assert torch.equal(torch.from_numpy(runner.call(ToPlain(batch, 6, 7, 19), [runner.packed(x)])), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Epilogue("swish"), "epilogue activation: 'swish' is unknown; expected one of None, 'relu'"),
        (lambda: Epilogue(residual="between"), "epilogue residual: 'between' is unknown"),
        (lambda: Epilogue("clip"), "epilogue bounds: None with 'clip'; expected for 'clip' only"),
        (lambda: Pool(1, 4, 4, 4, Window((2, 2)), "min"), "pool mode: 'min' is unknown; expected one of 'max', 'mean'"),
        (lambda: Binary(1, 4, 4, 4, "sub"), "elementwise operation: 'sub' is unknown; expected one of 'add', 'mul'"),
    ],
)
def test_unknown_names_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
