"""Winograd convolutions of bytes against int64 arithmetic, and where they are chosen: equal, not close."""

import re
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
import tvm
from integer_arithmetic import conv, requantize

from planish.backends.target import Target
from planish.backends.tvm.arithmetic import Sdot, Smull, Vmull
from planish.backends.tvm.build import tvm_target
from planish.backends.tvm.emit.integer_bounds import sum_ends
from planish.backends.tvm.kernels import (
    Addition,
    Dequantize,
    DirectConv,
    IntegerWinograd,
    Requantize,
    StoredGrid,
    Window,
    constants,
    prim_func,
)
from planish.backends.tvm.kernels.winograd_integer_choice import instead_of
from planish.backends.tvm.kernels.winograd_integer_plan import phases_at, plan, weights_of
from planish.backends.tvm.kernels.winograd_integer_points import HALF, PLACES, TWO
from planish.backends.tvm.kernels.winograd_integer_transforms import weights

from .assembly import innermost_loops, vector_stores
from .conftest import Runner
from .portable import PortableSmull

AROUND = (1, 1, 1, 1)


@pytest.fixture
def arm(widest) -> Runner:
    return Runner(replace(widest.machine, arithmetic=PortableSmull(4, 32)))


# batch, height, width, in, out, padding
CASES = {
    "tiles of four and of three": (1, 7, 7, 64, 64, AROUND),
    "several register tiles, images share a block": (2, 14, 14, 16, 64, AROUND),
    "strips": (1, 24, 20, 8, 8, AROUND),
    "strips of both sizes, odd channels": (2, 30, 22, 5, 7, AROUND),
    "tiles of three only": (1, 6, 9, 21, 41, AROUND),
    "no padding": (1, 10, 12, 16, 36, (0, 0, 0, 0)),
    "no padding, strips": (1, 30, 20, 20, 12, (0, 0, 0, 0)),
    "one-sided padding": (1, 7, 10, 12, 24, (0, 2, 2, 0)),
    "one tile": (3, 3, 4, 12, 8, AROUND),
    "batch known at run time": (None, 7, 8, 16, 40, AROUND),
    "strips, batch known at run time": (None, 16, 16, 12, 8, AROUND),
    "phases of a stride": (1, 21, 26, 3, 40, (3, 3, 3, 3), 7, 2),
    "phases of a stride, whole pixels, strips": (2, 32, 19, 4, 12, (3, 2, 2, 3), 7, 2),
    "phases of a stride, no padding": (None, 15, 16, 5, 8, (0, 0, 0, 0), 7, 2),
}


@dataclass(frozen=True)
class Layer:
    """A convolution's operands and the bytes that they give. extreme: everything at the ends, sums as large as they
    get."""

    spec: IntegerWinograd
    x: torch.Tensor
    weight: np.ndarray
    bias: np.ndarray
    factors: np.ndarray
    numbers: np.ndarray
    zero_point: int
    other: torch.Tensor | None
    sums: np.ndarray
    wanted: np.ndarray

    @staticmethod
    def of(
        extents: tuple, *, extreme: bool = False, added: bool = False, zero_point: int = -128, wide: bool = False
    ) -> "Layer":
        batch, height, width, inputs, outputs, (top, bottom, left, right) = extents[:6]
        kernel, stride = extents[6:] or (3, 1)
        generator, images = np.random.default_rng(3), batch or 2

        def drawn(ends: tuple[int, int], *shape: int) -> np.ndarray:
            low, high = ends
            values = generator.choice([low, high], shape) if extreme else generator.integers(low, high + 1, shape)
            return values.astype(np.int8)

        x, weight = (
            drawn((-128, 127), images, inputs, height, width),
            drawn((-127, 127), outputs, inputs, kernel, kernel),
        )
        if extreme:
            x[0, :, : height // 2 + 1], weight[0], weight[-1] = 127, 127, -127
        bias = generator.integers(-(2**20), 2**20, outputs).astype(np.int32)
        factors = (generator.uniform(0.2, 2, outputs) / (2400 * kernel * inputs**0.5)).astype(np.float32)
        if extreme:
            factors[[0, -1]] = 100 / (127 * 255 * kernel**2 * inputs)
        grid, last = StoredGrid(5, -125, 125), StoredGrid(-3, -127, 126)
        addition = Addition(7042 / 8192, 5000 / 8192, 9, last) if added else None
        centered = np.pad(x.astype(np.int64) - zero_point, ((0, 0), (0, 0), (top, bottom), (left, right)))
        sums = conv(centered, weight, bias, (stride, stride), (0, 0), (1, 1), 1)
        wanted = requantize(sums, factors.reshape(-1, 1, 1), grid.zero_point, grid.low, grid.high)
        other = torch.from_numpy(drawn((-128, 127), *wanted.shape)) if added else None
        if addition is not None and other is not None:
            own = (wanted - grid.zero_point) * addition.factor
            total = own + (other.numpy().astype(np.int64) - addition.zero_other) * addition.factor_other
            wanted = np.clip(np.rint(total) + last.zero_point, last.low, last.high)
        spec = IntegerWinograd(*extents[:6], Requantize("after" if added else None), kernel, stride, wide)
        numbers = constants(grid, addition)
        return Layer(spec, torch.from_numpy(x), weight, bias, factors, numbers, zero_point, other, sums, wanted)

    def check(self, runner: Runner) -> None:
        operands = self.weight, self.bias, self.factors, self.numbers, self.zero_point
        got = runner.images(self.spec, self.x, *operands, residual=self.other)
        np.testing.assert_array_equal(got.numpy(), self.wanted)


@pytest.mark.parametrize("extreme", [False, True], ids=["random", "extreme"])
@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_the_contract(arm, case, extreme):
    check_bytes(arm, CASES[case], extreme=extreme, wide=False)


@pytest.mark.parametrize("extreme", [False, True], ids=["random", "extreme"])
@pytest.mark.parametrize(
    "case", ["tiles of four and of three", "phases of a stride", "strips of both sizes, odd channels"]
)
def test_points_for_larger_sums_give_the_same_bytes(arm, case, extreme):
    check_bytes(arm, CASES[case], extreme=extreme, wide=True)


def check_bytes(arm: Runner, extents: tuple, *, extreme: bool, wide: bool) -> None:
    layer = Layer.of(extents, extreme=extreme, zero_point=-128 if extreme else 11, wide=wide)
    wraps_around = np.abs(layer.sums).max() * 900 > 2**31  # in the transform of the products
    assert wraps_around or not extreme or layer.spec.in_channels < 12
    layer.check(arm)


def test_an_addition_behind_it(arm):
    Layer.of(CASES["tiles of four and of three"], added=True).check(arm)


@pytest.mark.parametrize("wide", [False, True])
def test_the_largest_sums(arm, wide):
    """Biases take them to the ends of what fits: sums beyond it would come out wrong."""
    layer, largest = Layer.of((1, 8, 8, 8, 8, AROUND), wide=wide), (HALF if wide else TWO).largest_sum
    room = largest - np.abs(layer.sums).max() - 2**20
    bias = np.where(np.arange(8) % 2, room, -room).astype(np.int32)
    sums = layer.sums + (bias.astype(np.int64) - layer.bias).reshape(-1, 1, 1)
    assert largest * 0.9 < np.abs(sums).max() <= largest
    factors = np.full(8, 120 / largest, np.float32)
    wanted = requantize(sums, factors.reshape(-1, 1, 1), 5, -125, 125)
    replace(layer, bias=bias, factors=factors, sums=sums, wanted=wanted).check(arm)


@pytest.mark.parametrize(
    ("extents", "parts"),
    [((1, 7, 7, 64, 64, AROUND), 4), ((1, 8, 8, 32, 40, AROUND), 2), ((1, 24, 20, 32, 28, AROUND), 1)],
)
def test_parts_and_blocks_give_the_same_bytes(arm, extents, parts):
    layer = Layer.of(extents)
    cut = PortableSmull(4, 32, 4)
    assert plan(layer.spec, cut).parts == parts
    layer.check(Runner(replace(arm.machine, arithmetic=cut)))


@pytest.mark.parametrize("taps", [3, 4])
@pytest.mark.parametrize("inputs", PLACES)
@pytest.mark.parametrize("points", [TWO, HALF], ids=["2 and -2", "2 and -1/2"])
def test_transforms_filter_exactly_within_their_ranges(points, inputs, taps):
    """As whole numbers of Python: transformed, multiplied and transformed back they are the correlation, scaled."""
    generator, matrix = np.random.default_rng(0), points.weight[taps]
    d, g = (generator.integers(-99, 99, n).tolist() for n in (inputs, taps))
    weights = [sum(int(w) * tap for w, tap in zip(matrix[place], g, strict=True)) for place in PLACES[inputs]]
    products = [w * value for w, value in zip(weights, points.spread(d), strict=True)]
    outputs = [sum(d[i + j] * g[j] for j in range(taps)) for i in range(inputs - taps + 1)]
    scales = [points.odd << shift for shift in points.shifts[inputs]]
    assert points.gather(products, taps) == [own * scale for own, scale in zip(outputs, scales, strict=False)]
    assert points.bits == 2 * max(points.shifts[inputs]) or inputs == 5
    # The largest of a line is the sum of its coefficients' magnitudes; lines of both directions multiply.
    rows = np.array([points.spread([int(i == j) for i in range(inputs)]) for j in range(inputs)])
    assert np.abs(rows).sum(0).max() <= 14 and 14 * 14 * 128 < 2**15
    assert np.abs(matrix).sum(1).max() ** 2 * 128 < 2**15


@pytest.mark.parametrize("points", [TWO, HALF], ids=["2 and -2", "2 and -1/2"])
def test_products_left_out_are_zero(points):
    """At infinity a phase that meets a tap less has none: of a stem's 36 places 25 have four phases, 10 two, 1 one."""
    spec = IntegerWinograd(1, 224, 224, 3, 64, (3, 3, 3, 3), Requantize(), 7, 2)
    placed = weights(np.random.default_rng(0).integers(1, 128, (4, 3, 7, 7)), 2, points)  # no product is zero by chance
    for place in plan(spec, Smull(4, 32)).places:
        kept = phases_at(spec, place)
        assert not np.delete(placed[place], kept, 1).any() and placed[place][:, kept].any((0, 2)).all()
    assert weights_of(spec, plan(spec, Smull(4, 32)).places) == (25 * 4 + 10 * 2 + 1) * 3


@cache
def code(board: str) -> tuple[str, str]:
    """(assembly, LLVM's own text) of a kernel on a board."""
    target = Target.get(board)
    arithmetic = {"raspberry-pi-4": Smull(4, 32), "raspberry-pi-2": Vmull(4, 16)}[board]
    made = prim_func(IntegerWinograd(1, 16, 16, 64, 32, AROUND, Requantize()), arithmetic)
    module = tvm.compile(made.with_attr("global_symbol", "kernel"), tvm_target(target)).mod
    return module.inspect_source("asm"), module.inspect_source("ll")


@pytest.mark.parametrize(
    ("board", "product"),
    [("raspberry-pi-4", r"smlal2?\s+v\d+\.4s.*\.h\["), ("raspberry-pi-2", r"vmlal\.s16\s+q\d+.*\[")],
)
def test_products_stay_in_registers(board, product):
    """By element, with no other vector instruction but loads; LLVM would spread activations in other ways."""
    loops = [loop for loop in innermost_loops(code(board)[0]) if any(re.search(product, line) for line in loop)]
    assert loops
    for loop in loops:
        count = sum(bool(re.search(product, line)) for line in loop)
        assert count >= 32 and vector_stores(loop) == 0 and len(loop) < 1.75 * count


def test_sums_are_stored_among_the_last_products():
    blocks = re.split(r"^\.LBB\w+:|^\s+b(?:\.\w\w)?\s", code("raspberry-pi-4")[0], flags=re.MULTILINE)
    counts = [[len(re.findall(what, block)) for what in (r"\ssmlal2?\s", r"\sst[pr]\s+q")] for block in blocks]
    assert any(products >= 64 and stores >= 8 for products, stores in counts), counts


@pytest.mark.parametrize("board", ["raspberry-pi-4", "raspberry-pi-2"])
def test_sums_may_wrap_around(board):
    """LLVM is not told that vectors of int32 never overflow, but for the products of int16, which do not."""
    text = code(board)[1]
    assert "@llvm.vp.add.v4i32" in text and not re.search(r"\b(?:add|sub|shl) n[us]w <4 x i32>", text)


SAME = Window((3, 3), padding=AROUND)
CONV = DirectConv(1, 14, 14, 256, 256, SAME, epilogue=Requantize())
STEM = DirectConv(1, 224, 224, 3, 64, Window((7, 7), (2, 2), (3, 3, 3, 3)), epilogue=Requantize())
ENDS, FACTORS = np.array([[-(2**28)], [2**28]]), np.array([1e-3, 0.0], np.float32)


def chosen(conv: DirectConv, arithmetic, ends=ENDS, factors=FACTORS):
    return instead_of(conv, arithmetic, ends, factors)


@pytest.mark.parametrize(
    ("conv", "one_core", "four_cores"),
    [
        (DirectConv(1, 56, 56, 64, 64, SAME, epilogue=Requantize()), True, True),
        (CONV, True, True),
        (DirectConv(1, 7, 7, 512, 512, SAME, epilogue=Requantize()), True, False),  # weights take longer than products
        (DirectConv(1, 112, 112, 8, 8, SAME, epilogue=Requantize()), False, False),  # transforms take longer
        (STEM, True, True),
        (replace(STEM, in_channels=8, out_channels=4), False, False),
    ],
)
def test_choice(conv, one_core, four_cores):
    extents = conv.batch, conv.height, conv.width, conv.in_channels, conv.out_channels, conv.window.padding
    wanted = IntegerWinograd(*extents, conv.epilogue, conv.window.kernel[0], conv.window.stride[0], wide=True)
    for cores, pays in ((1, one_core), (4, four_cores)):
        assert chosen(conv, Smull(4, 32, cores)) == (wanted if pays else None)


@pytest.mark.parametrize(
    "conv",
    [
        replace(CONV, window=Window((3, 3), (2, 2), AROUND)),
        replace(CONV, window=Window((3, 3), (1, 1), (2, 2, 2, 2), (2, 2))),
        replace(CONV, window=Window((5, 5), (1, 1), (2, 2, 2, 2))),
        replace(CONV, groups=2),
        replace(CONV, image=True),
        replace(CONV, epilogue=Dequantize()),
        replace(CONV, height=5),
        replace(CONV, width=2),
    ],
    ids=["stride", "dilation", "window", "groups", "image", "floats", "no whole tiles down", "nor across"],
)
def test_others_stay_direct(conv):
    assert chosen(conv, Smull(4, 32)) is None


def test_only_what_is_exact():
    """A layer whose weights allow larger sums, or whose multiplier has no exact quarter, stays direct."""
    for ends, wide in ((ENDS, True), (ENDS // 16, False)):
        found = [chosen(conv, Smull(4, 32), ends=ends) for conv in (CONV, STEM)]
        assert all(spec and spec.wide == wide for spec in found)
    assert chosen(CONV, Smull(4, 32), ends=ENDS * 2) is None
    assert chosen(CONV, Smull(4, 32), factors=np.array([1e-3, 1e-38], np.float32)) is None
    weight = np.full((1, 1841, 3, 3), 127, np.int8)
    largest = np.abs(sum_ends(weight, np.zeros(1), -128, "int8")).max()
    assert largest <= HALF.largest_sum < largest * 1842 / 1841  # what 2**29 means for the widest layer


def test_only_where_it_is_faster():
    assert chosen(CONV, Sdot(4, 32)) is None
    assert chosen(CONV, Vmull(4, 16))
