"""NaN, infinities and denormal numbers go through every kernel as they go through PyTorch."""

import pytest
import torch
from torch.nn import functional as F

from planish.backends.tvm.kernels import (
    Binary,
    Dense,
    Depthwise,
    DirectConv,
    Epilogue,
    ExpandDepthwise,
    GlobalMean,
    Pointwise,
    Pool,
    TransposedConv,
    Unary,
    Window,
    Winograd,
)
from planish.backends.tvm.kernels.activations import ACTIVATIONS

from .conftest import unpacked

SAME = Window((3, 3), padding=(1, 1, 1, 1))
NAN, INF = float("nan"), float("inf")
SPECIAL = {"nan": NAN, "infinity": INF, "minus infinity": -INF, "denormal": 1e-40}


def image(special: float, channels: int = 20) -> torch.Tensor:
    """Ones, and one special value, off the border."""
    x = torch.ones(1, channels, 9, 11)
    x[0, 3, 4, 5] = special
    return x


def ones(*extents: int) -> torch.Tensor:
    return torch.ones(extents)


def expand_depthwise(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.conv2d(x, first), second, padding=1, groups=20)


NONE = torch.zeros(20)
# kernel, its weights and biases, the same in PyTorch
KERNELS = {
    "pointwise": (Pointwise(1, 9, 11, 20, 20), [ones(20, 20, 1, 1), NONE], lambda x: F.conv2d(x, ones(20, 20, 1, 1))),
    "direct": (DirectConv(1, 9, 11, 20, 20, SAME), [ones(20, 20, 3, 3), NONE],
               lambda x: F.conv2d(x, ones(20, 20, 3, 3), padding=1)),
    "depthwise": (Depthwise(1, 9, 11, 20, SAME), [ones(20, 1, 3, 3), NONE],
                  lambda x: F.conv2d(x, ones(20, 1, 3, 3), padding=1, groups=20)),
    "expand and depthwise": (ExpandDepthwise(1, 9, 11, 20, 20, SAME),
                             [ones(20, 20, 1, 1), NONE, ones(20, 1, 3, 3), NONE],
                             lambda x: expand_depthwise(x, ones(20, 20, 1, 1), ones(20, 1, 3, 3))),
    "transposed": (TransposedConv(1, 9, 11, 20, 20, (2, 2), (2, 2), (0, 0), (1, 1), (18, 22)),
                   [ones(20, 20, 2, 2), NONE],
                   lambda x: F.conv_transpose2d(x, ones(20, 20, 2, 2), stride=2)),
    "max pool": (Pool(1, 9, 11, 20, SAME, "max"), [], lambda x: F.max_pool2d(x, 3, 1, 1)),
    "mean pool": (Pool(1, 9, 11, 20, SAME, "mean"), [], lambda x: F.avg_pool2d(x, 3, 1, 1)),
    "global mean": (GlobalMean(1, 9, 11, 20), [], lambda x: x.mean((2, 3), keepdim=True)),
}  # fmt: skip


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Specials in the same places, and the rest within a rounding error of a few sums of ones."""
    torch.testing.assert_close(got, wanted.double(), rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels(runner, kernel, special):
    spec, weights, reference = KERNELS[kernel]
    x = image(SPECIAL[special])
    same(runner.images(spec, x, *weights), reference(x))


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations(runner, activation, special):
    if (activation, special) == ("gelu", "infinity"):
        pytest.skip("PyTorch's own gelu of infinity is NaN in vectors, and infinity in what is left of them")
    bounds = (-1.0, 2.0) if activation == "clip" else None
    spec = Unary(1, 9, 11, 20, Epilogue(activation, bounds) if bounds else Epilogue(activation))
    x = image(SPECIAL[special])
    functions = {"clip": lambda v: v.clamp(-1, 2), "sigmoid": torch.sigmoid, "tanh": torch.tanh}
    wanted = functions[activation](x) if activation in functions else getattr(F, activation)(x)
    got = runner.images(spec, x)
    torch.testing.assert_close(got, wanted.double(), rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("special", SPECIAL)
def test_dense_and_sums(runner, special):
    x = image(SPECIAL[special])
    same(added(runner, x), x + x)
    rows = x.reshape(20, 99)
    got = runner.call(Dense(20, 99, 7), [rows.numpy()], (ones(7, 99), torch.zeros(7)))
    same(torch.from_numpy(got).double(), rows @ ones(99, 7))


def added(runner, x: torch.Tensor) -> torch.Tensor:
    packed = runner.packed(x)
    return unpacked(runner.call(Binary(1, 9, 11, 20, "add"), [packed, packed]), 20)


@pytest.mark.parametrize("tile", [2, 4])
def test_winograd_spreads_specials_no_further_than_their_tiles(runner, tile):
    """Tiles that read a NaN or an infinity may lose all their outputs; none has a number where PyTorch has none."""
    for special in (NAN, INF):
        x = image(special)
        wanted = F.conv2d(x.double(), ones(20, 20, 3, 3).double(), padding=1)
        got = runner.images(Winograd(1, 9, 11, 20, 20, (1, 1, 1, 1), tile), x, ones(20, 20, 3, 3), NONE)
        assert not got[~wanted.isfinite()].isfinite().any()
        rows, columns = (slice((p - 1) // tile * tile, ((p + 1) // tile + 1) * tile) for p in (4, 5))
        outside = torch.ones(9, 11, dtype=torch.bool)
        outside[rows, columns] = False
        torch.testing.assert_close(got[..., outside], wanted[..., outside], rtol=1e-4, atol=1e-3)


def test_denormals_are_not_flushed(runner):
    x = torch.full((1, 20, 9, 11), 1e-40)
    identity = torch.eye(20).reshape(20, 20, 1, 1)
    got = runner.images(Pointwise(1, 9, 11, 20, 20), x, identity, NONE)
    assert torch.equal(got, x.double())
