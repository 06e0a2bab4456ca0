"""Kernels that read the channels of their input from several maps: the same bytes as from one."""

from dataclasses import replace

import numpy as np
import pytest

from planish.backends.tvm.arithmetic import Amx, NeonFp32, X86Fp32
from planish.backends.tvm.kernels import (
    Depthwise,
    DirectConv,
    IntegerWinograd,
    Pointwise,
    Requantize,
    Spec,
    StoredGrid,
    Window,
    Winograd,
    constants,
    in_parts,
    signature,
)

from .conftest import Runner, integer_machines
from .portable import PortableSmull

PARTS = (32, 16, 48)
CHANNELS = sum(PARTS)
SAME = Window((3, 3), padding=(1, 1, 1, 1))
AROUND = (1, 1, 1, 1)


def check(runner: Runner, spec: Spec) -> None:
    """From one map, and from three that hold the same: equal, byte for byte, and not all alike."""
    generator = np.random.default_rng(0)
    arithmetic, side = runner.arithmetic, 1 if isinstance(spec, Pointwise) else 3
    weight, bias = generator.normal(size=(24, CHANNELS, side, side)).astype(np.float32), np.arange(24, dtype=np.float32)
    shape = tuple(2 if s is None else s for s in signature(spec, arithmetic).inputs[0])
    if arithmetic.activation == "float32":
        x, weights = generator.normal(size=shape).astype(np.float32), (weight, bias)
    else:
        ends = np.iinfo(arithmetic.activation)
        grid, low = StoredGrid(int(ends.min) + 128, int(ends.min), int(ends.max)), int(ends.min)
        x = generator.integers(low, ends.max + 1, shape).astype(arithmetic.activation)
        factors = np.full(24, 0.02 / (CHANNELS * side**2) ** 0.5, np.float32)  # sums spread by about 40
        weights = np.rint(30 * weight).clip(-127, 127).astype(np.int8), bias.astype(np.int32), factors
        weights += constants(grid), low + 100
    parted = in_parts(spec, arithmetic, PARTS)
    assert parted is not None
    maps = [np.ascontiguousarray(part) for part in np.split(x, np.cumsum(PARTS)[:-1], axis=3)]
    whole = runner.call(spec, [x], weights)
    assert runner.call(parted, maps, weights).tobytes() == whole.tobytes()
    assert len(np.unique(whole)) > 100


FLOATS = {
    "winograd": Winograd(2, 9, 11, CHANNELS, 24, AROUND, 4),
    "pointwise": Pointwise(None, 5, 7, CHANNELS, 24),
}


@pytest.mark.parametrize("spec", FLOATS.values(), ids=FLOATS)
def test_floats(runner, spec):
    check(runner, spec)


ON_ARM = {
    "phases of a stride": Winograd(1, 9, 8, CHANNELS, 24, AROUND, 4, stride=2),
    "weights as they are": Winograd(1, 7, 7, CHANNELS, 24, AROUND, 4, fresh=True),
}


@pytest.mark.parametrize("spec", ON_ARM.values(), ids=ON_ARM)
def test_floats_of_arm(widest, spec):
    """The loops of ARM, in this processor."""
    check(Runner(replace(widest.machine, arithmetic=NeonFp32(4, 32, 2))), spec)


@pytest.mark.skipif("amx" not in integer_machines(), reason="needs a matrix unit")
@pytest.mark.parametrize("window", [SAME, Window((3, 3), (2, 1), (1, 0, 0, 1))])
def test_lines_of_bytes_that_are_copied(window):
    """The input of a matrix unit, with its padding."""
    check(Runner(integer_machines()["amx"]), DirectConv(2, 6, 7, CHANNELS, 24, window, epilogue=Requantize()))


def test_pointwise_integers():
    """Without a matrix unit."""
    machine = next(machine for machine in integer_machines().values() if not isinstance(machine.arithmetic, Amx))
    check(Runner(machine), Pointwise(None, 5, 7, CHANNELS, 24, Requantize()))


def test_integers_by_winograd(widest):
    arm = Runner(replace(widest.machine, arithmetic=PortableSmull(4, 32)))
    check(arm, IntegerWinograd(2, 6, 9, CHANNELS, 24, AROUND))


NEON, AVX2, AMX = NeonFp32(4, 32), X86Fp32(8, 16), Amx(16, 32)


@pytest.mark.parametrize(
    ("spec", "arithmetic", "parts"),
    [
        (Depthwise(1, 9, 9, 32, SAME), NEON, (16, 16)),
        (DirectConv(1, 9, 9, 32, 32, SAME), NEON, (16, 16)),
        (Winograd(1, 9, 9, 8, 8, AROUND, 3, kernel=7, stride=2, image=True), NEON, (4, 4)),
        (Pointwise(1, 9, 9, 20, 8), AVX2, (8, 12)),
        (Pointwise(1, 9, 9, 80, 8), AVX2, (16, 16, 16, 16, 16)),
        (Pointwise(1, 9, 9, 32, 8, Requantize()), AMX, (16, 16)),
        (DirectConv(1, 9, 9, 32, 8, Window((3, 3)), epilogue=Requantize()), AMX, (16, 16)),
        (IntegerWinograd(1, 10, 10, 32, 8, (0, 0, 0, 0)), PortableSmull(4, 32), (16, 16)),
    ],
)
def test_what_reads_one_map(spec, arithmetic, parts):
    """Direct kernels, images, parts that end within a vector or are many, bytes that are read as they lie."""
    assert in_parts(spec, arithmetic, parts) is None
