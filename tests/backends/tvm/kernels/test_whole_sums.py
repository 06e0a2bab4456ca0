"""Additions of whole numbers behind a product, as cores without the dot product make them, against float64: equal."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm

from planish.backends.target import Target
from planish.backends.tvm.arithmetic import Smull
from planish.backends.tvm.build import tvm_target
from planish.backends.tvm.emit.integer_bounds import has_whole_sum
from planish.backends.tvm.kernels import (
    Addition,
    IntegerWinograd,
    Pointwise,
    Requantize,
    StoredGrid,
    constants,
    prim_func,
)

from .conftest import Runner
from .portable import PortableSmull

BYTES = np.arange(-128, 128)
OWN, LAST = StoredGrid(3, -120, 125), StoredGrid(-7, -128, 126)
# The first as lower-integers makes them; then many ties; a difference; one that fills sixteen bits.
FACTORS = [(7042 / 8192, 5000 / 8192), (0.5, 0.25), (1.25, -0.75), (32767 / 2**20, 100 / 2**20)]


@pytest.fixture
def arm(widest) -> Runner:
    return Runner(replace(widest.machine, arithmetic=PortableSmull(4, 32)))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_every_pair_of_bytes(arm, factors, whole):
    """Own integers are the input's steps, and in further channels halves of them, rounded, and ten times of them, held
    between the ends."""
    multiplier, outputs = np.array([1.0, 0.5, 10.0, -1.0, 0.0], np.float32), 5
    x = torch.from_numpy(np.broadcast_to(BYTES[:, None], (1, 1, 256, 256)).astype(np.int8))
    other = torch.from_numpy(np.broadcast_to(BYTES, (1, outputs, 256, 256)).astype(np.int8))
    addition = Addition(*factors, 9, LAST)
    numbers = constants(OWN, addition)
    assert has_whole_sum(numbers, "int8")
    spec = IntegerWinograd(1, 256, 256, 1, outputs, (1, 1, 1, 1), Requantize("after", whole=whole))
    weight = np.zeros((outputs, 1, 3, 3), np.int8)
    weight[:, :, 1, 1] = 1
    operands = weight, np.zeros(outputs, np.int32), multiplier, numbers, 0
    got = arm.images(spec, x, *operands, residual=other)
    own = np.clip(np.rint(BYTES * multiplier[:, None].astype(np.float64)), OWN.low - 3, OWN.high - 3)
    total = own[:, :, None] * factors[0] + (BYTES - 9) * factors[1]  # exact in float64
    np.testing.assert_array_equal(got[0].numpy(), np.clip(np.rint(total) - 7, LAST.low, LAST.high))


def test_factors_as_whole_numbers():
    """Of fifteen bits, with as many bits behind the point as they have room for."""
    assert Addition(7042 / 8192, 5000 / 8192, 0, LAST).whole() == (7042 * 4, 5000 * 4, 15)
    assert Addition(-3.0, 2.0**-13, 0, LAST).whole() == (-3 * 2**13, 1, 13)
    assert Addition(32767 / 4, 1 / 4, 0, LAST).whole() == (32767, 1, 2)
    for factors in ((3.0, 2.0**-14), (0.1, 0.1), (0.0, 0.0)):
        assert Addition(*factors, 0, LAST).whole() is None


def test_other_additions_are_made_with_floats():
    """Factors that are not whole, and steps that leave int16."""
    assert has_whole_sum(constants(OWN, Addition(60.0, 60.0, 0, LAST)), "int8")
    assert not has_whole_sum(constants(OWN, Addition(200.0, 100.0, 0, LAST)), "int8")
    assert not has_whole_sum(constants(OWN, Addition(float(np.float32(0.1)), 0.5, 0, LAST)), "int8")
    assert not has_whole_sum(constants(OWN), "int8")


def test_instructions():
    """Two products of integers of each vector; floats are multiplied by the channel's factor alone."""
    spec = Pointwise(1, 8, 8, 16, 32, Requantize("after", saturates=True, whole=True))
    made = prim_func(spec, Smull(4, 32)).with_attr("global_symbol", "kernel")
    text = tvm.compile(made, tvm_target(Target.get("raspberry-pi-4"))).mod.inspect_source("asm")
    products, floats = (len(re.findall(what, text)) for what in (r"\ssmlal2?\s+v\d+\.4s", r"\sfmul\s+v\d+\.4s"))
    assert products == floats > 0 and not re.search(r"\s(?:fmla|frintn|fmax|fmin)\s", text)
