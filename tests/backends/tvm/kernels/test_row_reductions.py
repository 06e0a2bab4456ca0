"""Layer norm and softmax against PyTorch's in float64, over rows that fill no vector, or less than one."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from planish.backends.tvm.kernels import LayerNorm, Softmax

from .conftest import close

ROWS = [(1, 3), (5, 33), (None, 64), (7, 200)]


@pytest.mark.parametrize("affine", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_layer_norm(runner, shape, affine):
    """Around a mean that is far larger than what is left, which a single pass over squares would lose."""
    rows, width = shape
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(rows or 4, width, generator=draw) + 100
    weights = [torch.randn(width, generator=draw) if affine else None for _ in range(2)]
    got = runner.call(LayerNorm(rows, width, 1e-5), [x.numpy()], tuple(weights))
    doubles = [None if w is None else w.double() for w in weights]
    wanted = F.layer_norm(x.double(), (width,), *doubles, eps=1e-5)
    # Inputs of order 100 carry errors of 4e-6 of what is left of them.
    torch.testing.assert_close(torch.from_numpy(got).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_softmax(runner, shape):
    rows, width = shape
    x = torch.randn(rows or 4, width, generator=torch.Generator().manual_seed(1)) * 30
    x[0, 1] = float("-inf")
    got = torch.from_numpy(runner.call(Softmax(rows, width), [x.numpy()]))
    close(got, x.double().softmax(1), 60)  # errors of x are up to 60 units of exp's argument
    assert got[0, 1] == 0


def test_nan_stays_in_its_row(widest):
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(1))
    x[2, 7] = float("nan")
    for spec in (Softmax(4, 20), LayerNorm(4, 20, 1e-5)):
        got = widest.call(spec, [x.numpy()], (None, None) if isinstance(spec, LayerNorm) else ())
        np.testing.assert_array_equal(np.isnan(got).any(1), [False, False, True, False])
