"""Winograd convolutions against PyTorch in float64, and where they are chosen."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from torch.nn import functional as F

from planish.backends.target import Target
from planish.backends.tvm.arithmetic import NeonFp16, NeonFp32
from planish.backends.tvm.build import tvm_target
from planish.backends.tvm.kernels import DirectConv, Epilogue, Window, Winograd, prim_func
from planish.backends.tvm.kernels.winograd_choice import instead_of
from planish.backends.tvm.kernels.winograd_matrices import POINTS, matrices
from planish.backends.tvm.kernels.winograd_plan import plan

from .assembly import innermost_loops, vector_stores
from .conftest import Runner

# batch, height, width, in, out, padding
CASES = {
    "whole tiles": (1, 8, 8, 32, 48, (1, 1, 1, 1)),
    "tiles beyond the map, odd channels": (2, 9, 15, 20, 40, (1, 1, 1, 1)),
    "no padding": (1, 11, 12, 16, 16, (0, 0, 0, 0)),
    "one-sided padding": (1, 7, 10, 16, 24, (0, 2, 2, 0)),
    "one output": (1, 3, 3, 5, 7, (0, 0, 0, 0)),
    "one pixel": (3, 1, 1, 20, 40, (1, 1, 1, 1)),
    "images share a block": (5, 6, 6, 16, 16, (1, 1, 1, 1)),
    "several blocks": (1, 70, 70, 64, 64, (1, 1, 1, 1)),
    "batch known at run time": (None, 10, 10, 16, 40, (1, 1, 1, 1)),
}


@pytest.mark.parametrize("tile", (2, 3, 4))
@pytest.mark.parametrize("case", CASES)
def test_winograd(runner, case, tile):
    """Tolerance: a direct kernel's (one rounding error per product) for 2 x 2 tiles; for larger ones, whose transforms
    multiply by up to 8 and add up to 36 products, 8 times that (seen: 4)."""
    batch, height, width, inputs, outputs, padding = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(batch or 3, inputs, height, width)
    weight, bias = torch.randn(outputs, inputs, 3, 3), torch.randn(outputs)
    top, bottom, left, right = padding
    shape = height + top + bottom - 2, width + left + right - 2
    added = torch.randn(batch or 3, outputs, *shape)
    spec = Winograd(batch, height, width, inputs, outputs, padding, tile, Epilogue("relu", residual="before"))
    got = runner.images(spec, x, weight, bias, residual=added)
    padded = F.pad(x.double(), (left, right, top, bottom))
    wanted = F.relu(F.conv2d(padded, weight.double(), bias.double()) + added)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-7 * (9 * inputs + 8) * (8 if tile > 2 else 1))


# kernel, stride, tile, image; then batch, height, width, in, out, padding
STRIDED = {
    "4x4 of 3x3": ((3, 2, 4, False), (1, 13, 14, 20, 40, (1, 1, 1, 1))),
    "5x5 of 3x3": ((3, 2, 5, False), (2, 9, 16, 16, 32, (0, 1, 0, 1))),
    "3x3 of 3x3, batch known at run time": ((3, 2, 3, False), (None, 12, 12, 16, 24, (1, 1, 1, 1))),
    "4x4 of 5x5, images share a block": ((5, 2, 4, False), (5, 7, 7, 16, 16, (2, 2, 2, 2))),
    "an image": ((7, 2, 3, True), (1, 21, 26, 3, 40, (3, 3, 3, 3))),
    "images, padding on one side": ((7, 2, 3, True), (2, 16, 11, 2, 24, (0, 5, 6, 0))),
    "an image, 3x3": ((3, 2, 3, True), (1, 24, 24, 3, 16, (1, 1, 1, 1))),
    "more weights than map: in parts": ((3, 2, 4, False), (1, 8, 8, 40, 64, (1, 1, 1, 1))),
}


@pytest.fixture
def neon(widest) -> Runner:
    """The kernels of ARM in this processor: the same loops, outputs in parts for two cores."""
    return Runner(replace(widest.machine, arithmetic=NeonFp32(4, 32, 2)))


@pytest.mark.parametrize("case", STRIDED)
def test_phases_of_a_stride(neon, case):
    """Tolerance: as for large tiles above."""
    (kernel, stride, tile, image), (batch, height, width, inputs, outputs, padding) = STRIDED[case]
    torch.manual_seed(0)
    x = torch.randn(batch or 3, inputs, height, width)
    weight, bias = torch.randn(outputs, inputs, kernel, kernel), torch.randn(outputs)
    top, bottom, left, right = padding
    padded = F.pad(x.double(), (left, right, top, bottom))
    wanted = F.conv2d(padded, weight.double(), bias.double(), stride=stride)
    added = torch.randn(wanted.shape)
    epilogue = Epilogue("relu", residual="before")
    spec = Winograd(batch, height, width, inputs, outputs, padding, tile, epilogue, kernel, stride, image)
    got = neon.images(spec, x, weight, bias, residual=added)
    torch.testing.assert_close(got.double(), F.relu(wanted + added), rtol=0, atol=16e-7 * (kernel**2 * inputs + 8))


@pytest.mark.parametrize("extents", [(1, 7, 7, 64, 64), (2, 9, 11, 36, 40), (1, 6, 5, 200, 20)])
def test_weights_that_are_transformed_while_the_kernel_runs(neon, extents):
    """As exact as weights that were transformed before, in float64. Tolerance: as for large tiles above."""
    batch, height, width, inputs, outputs = extents
    torch.manual_seed(0)
    x, bias = torch.randn(batch, inputs, height, width), torch.randn(outputs)
    weight = torch.randn(outputs, inputs, 3, 3)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    errors = {}
    for fresh in (False, True):
        spec = Winograd(*extents, (1, 1, 1, 1), 4, fresh=fresh)
        got = neon.images(spec, x, weight, bias)
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=16e-7 * (9 * inputs + 8))
        errors[fresh] = float((got - wanted).norm())
    assert errors[True] < 1.5 * errors[False]


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (Winograd(1, 20, 20, 8, 16, (1, 1, 1, 1), 2), 1),
        (Winograd(1, 40, 40, 3, 16, (3, 3, 3, 3), 3, kernel=7, stride=2, image=True), 1),
        (Winograd(1, 8, 8, 40, 64, (1, 1, 1, 1), 4, kernel=3, stride=2), 4),
        (Winograd(1, 8, 8, 40, 36, (1, 1, 1, 1), 4), 3),
        (Winograd(1, 7, 7, 128, 64, (1, 1, 1, 1), 4, fresh=True), 4),
    ],
)
def test_parts_and_blocks_give_the_same_bytes(widest, spec, parts):
    """However many cores the outputs or the tiles are cut for, every output is the same sum in the same order."""
    torch.manual_seed(0)
    x = torch.randn(spec.batch, spec.in_channels, spec.height, spec.width)
    weight = torch.randn(spec.out_channels, spec.in_channels, spec.kernel, spec.kernel)
    results = []
    for cores in (1, 4):
        arithmetic = NeonFp32(4, 32, cores)
        assert plan(spec, arithmetic).parts == (1 if cores == 1 else parts)
        results.append(Runner(replace(widest.machine, arithmetic=arithmetic)).images(spec, x, weight, None))
    assert torch.equal(*results)


@pytest.mark.parametrize(("outputs", "taps"), [(s - r + 1, r) for s in POINTS for r in (2, 3, 4) if s > r])
def test_matrices_filter_exactly(outputs, taps):
    """output @ ((weight @ g) * (input @ d)) is the correlation of d and g, in fractions."""
    made = matrices(outputs, taps)
    rows = [np.array(rows, object) for rows in (made.output, made.weight, made.input)]
    generator = np.random.default_rng(0)
    g, d = (np.array(generator.integers(-9, 9, n).tolist(), object) for n in (taps, outputs + taps - 1))
    wanted = [sum(d[i + j] * g[j] for j in range(taps)) for i in range(outputs)]
    assert (rows[0] @ ((rows[1] @ g) * (rows[2] @ d))).tolist() == wanted


SAME = Window((3, 3), padding=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("conv", "tile"),
    [
        (DirectConv(1, 56, 56, 64, 64, SAME), 4),
        (DirectConv(1, 14, 14, 256, 256, SAME), 2),
        (DirectConv(1, 7, 7, 512, 512, SAME), None),
        (DirectConv(1, 4, 4, 512, 512, SAME), None),
        (DirectConv(4, 4, 4, 512, 512, SAME), 2),  # the direct kernel reads all weights four times
        (DirectConv(1, 1, 1, 64, 64, SAME), None),
        (DirectConv(1, 56, 56, 64, 64, Window((3, 3), (2, 2), (1, 1, 1, 1))), None),
        (DirectConv(1, 56, 56, 64, 64, Window((3, 3), (1, 1), (2, 2, 2, 2), (2, 2))), None),
        (DirectConv(1, 56, 56, 64, 64, SAME, groups=2), None),
        (DirectConv(1, 56, 56, 3, 64, SAME, image=True), None),
        (DirectConv(1, 56, 56, 64, 64, Window((1, 1))), None),
    ],
)
def test_choice(widest, conv, tile):
    found = instead_of(conv, widest.arithmetic)
    assert (found and found.tile) == tile


STEM = Window((7, 7), (2, 2), (3, 3, 3, 3))
HALVED = Window((3, 3), (2, 2), (1, 1, 1, 1))


# By arithmetic: the tile, and whether weights are transformed while the kernel runs. Four cores read memory no faster
# than one, so that for them weights lie in memory as they are, or go without Winograd.
ON_ARM = {
    "one core": NeonFp32(4, 32, 1),
    "four cores": NeonFp32(4, 32, 4),
    "one core, float16": NeonFp16(8, 32, 1),
}


@pytest.mark.parametrize("name", ON_ARM)
@pytest.mark.parametrize(
    ("conv", "found"),
    [
        (DirectConv(1, 224, 224, 3, 64, STEM, image=True), [(3, False)] * 3),
        (DirectConv(None, 224, 224, 3, 64, STEM, image=True), [None] * 3),
        (DirectConv(1, 56, 56, 64, 64, SAME), [(4, False)] * 3),
        (DirectConv(1, 56, 56, 64, 128, HALVED), [(4, False), (4, False), (3, False)]),
        (DirectConv(1, 28, 28, 128, 256, HALVED), [(5, False), (3, False), (3, False)]),
        (DirectConv(1, 14, 14, 256, 256, SAME), [(4, False), (4, True), (4, False)]),
        (DirectConv(1, 7, 7, 512, 512, SAME), [(4, False), (4, True), (2, False)]),
        (DirectConv(1, 56, 56, 64, 64, Window((5, 5), padding=(2, 2, 2, 2))), [None] * 3),
    ],
)
def test_choice_on_arm(name, conv, found):
    chosen = instead_of(conv, ON_ARM[name])
    assert (chosen and (chosen.tile, chosen.fresh)) == found[list(ON_ARM).index(name)]


def test_sums_are_stored_among_the_last_products():
    """On ARM the last pass stands behind the loop, which holds all its registers: nothing is spilled."""
    spec = Winograd(1, 28, 28, 64, 64, (1, 1, 1, 1), 4)
    made = prim_func(spec, NeonFp32(4, 32)).with_attr("global_symbol", "kernel")
    text = tvm.compile(made, tvm_target(Target.get("raspberry-pi-4"))).mod.inspect_source("asm")
    product = r"\sfmla\s.*\.s\[\d\]"
    loops = [loop for loop in innermost_loops(text) if len(re.findall(product, "\n".join(loop))) >= 48]
    assert loops and not any(map(vector_stores, loops))
    blocks = re.split(r"^\.LBB\w+:|^\s+b(?:\.\w\w)?\s", text, flags=re.MULTILINE)
    counts = [[len(re.findall(what, block)) for what in (product, r"\sst[pr]\s+q")] for block in blocks]
    assert any(products >= 48 and stores >= 7 for products, stores in counts)  # of two sums each, or of one
