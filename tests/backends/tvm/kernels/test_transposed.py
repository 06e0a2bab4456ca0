"""Transposed convolutions against PyTorch in float64; in integers against exact sums, every bit."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from planish.backends.tvm.kernels import Epilogue, Requantize, StoredGrid, TransposedConv, constants
from planish.backends.tvm.kernels.transposed import window

from .conftest import close

# batch, height, width, in, out, kernel, stride, padding, output padding, dilation
CASES = {
    "two by two, stride two": (1, 7, 9, 32, 24, (2, 2), (2, 2), (0, 0), (0, 0), (1, 1)),
    "four by four, padding": (2, 5, 6, 20, 40, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1)),
    "odd output": (1, 6, 5, 16, 16, (3, 3), (2, 2), (1, 1), (0, 0), (1, 1)),
    "output padding": (1, 6, 5, 16, 16, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    "stride one": (1, 6, 6, 8, 12, (3, 3), (1, 1), (1, 1), (0, 0), (1, 1)),
    "gaps between windows": (1, 4, 4, 8, 8, (2, 1), (3, 2), (0, 0), (0, 0), (1, 1)),
    "dilated, unequal strides": (1, 5, 7, 12, 20, (3, 2), (2, 3), (1, 0), (0, 1), (3, 2)),
    "one pixel, batch known at run time": (None, 1, 1, 20, 40, (4, 4), (4, 4), (0, 0), (0, 0), (1, 1)),
}


def spec_of(case: str, epilogue, bordered: bool = False) -> tuple[TransposedConv, dict]:
    batch, height, width, inputs, outputs, kernel, stride, padding, added, dilation = CASES[case]
    sizes = zip((height, width), kernel, stride, padding, added, dilation, strict=True)
    output = tuple((n - 1) * s - 2 * p + d * (k - 1) + a + 1 for n, k, s, p, a, d in sizes)
    spec = TransposedConv(
        batch, height, width, inputs, outputs, kernel, stride, padding, dilation,
        (output[0], output[1]), epilogue, bordered,
    )  # fmt: skip
    return spec, {"stride": stride, "padding": padding, "output_padding": added, "dilation": dilation}


@pytest.mark.parametrize("case", CASES)
def test_transposed(runner, case):
    spec, options = spec_of(case, Epilogue("relu", residual="before"))
    batch = spec.batch or 3
    x = torch.randn(batch, spec.in_channels, spec.height, spec.width)
    weight, bias = torch.randn(spec.in_channels, spec.out_channels, *spec.kernel), torch.randn(spec.out_channels)
    added = torch.randn(batch, spec.out_channels, *spec.output)
    wanted = F.conv_transpose2d(x.double(), weight.double(), bias.double(), **options) + added
    got = runner.images(spec, x, weight, bias, residual=added)
    close(got, F.relu(wanted), weight[:, 0].numel())


@pytest.mark.parametrize("case", CASES)
def test_integers(integers, case):
    """Bytes that mean q - 7: sums in float64 are exact, and so is their product with a power of two."""
    spec, options = spec_of(case, Requantize(), bordered=True)
    batch, kind, low = (
        spec.batch or 3,
        integers.arithmetic.activation,
        -128 if integers.arithmetic.activation == "int8" else 0,
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(low, low + 256, (batch, spec.in_channels, spec.height, spec.width), generator=generator)
    weight = torch.randint(-127, 128, (spec.in_channels, spec.out_channels, *spec.kernel), generator=generator)
    bias = torch.randint(-999, 999, (spec.out_channels,), generator=generator)
    grid = StoredGrid(low + 5, low, low + 255)
    factors = np.full(spec.out_channels, 2.0**-9, np.float32)
    weights = weight.to(torch.int8), bias.int(), factors, constants(grid), 7
    got = integers.images(spec, x.to(getattr(torch, kind)), *weights)
    sums = F.conv_transpose2d((x - 7).double(), weight.double(), bias.double(), **options)
    assert torch.equal(got, (torch.round(sums * 2.0**-9) + low + 5).clamp(low, low + 255))


def test_padding_that_cuts_whole_windows_has_no_kernel():
    spec = TransposedConv(1, 5, 5, 8, 8, (1, 1), (1, 1), (1, 1), (1, 1), (3, 3))
    assert window(spec) is None
