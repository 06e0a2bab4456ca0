"""Order of work on a matrix unit, and bytes whose factors bound them, against int64 arithmetic: equal, not close."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from planish.backends.tvm.arithmetic import Amx
from planish.backends.tvm.kernels import Depthwise, DirectConv, Pointwise, Requantize, StoredGrid, Window, describe

from .conftest import Runner, integer_machines
from .test_integers import SAME, Case, check_conv

STRIDED = Window((3, 3), (2, 2), (1, 1, 1, 1))


@dataclass(frozen=True)
class Overflowing(Case):
    """Most results are beyond the ends of the bytes, many beyond int16."""

    full: bool = False

    def multiplier(self, outputs: int, products: int) -> np.ndarray:
        return np.minimum(super().multiplier(outputs, products) * 2000, np.float32(0.999))

    def grid(self, what: int = 0) -> StoredGrid:
        grid = super().grid(what)
        return replace(grid, low=self.ends[0], high=self.ends[1]) if self.full else grid


@pytest.mark.parametrize("saturates", [False, True], ids=["ends", "saturating"])
@pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
def test_bounded(integers, saturates, added):
    """Nothing wraps around where steps leave int16; a sum of two keeps its own ends."""
    epilogue = Requantize("after" if added else None, saturates=saturates, bounded=True)
    case = Overflowing(integers, 5, False, saturates)
    spec = Pointwise(1, 7, 7, 32, 50, epilogue)
    check_conv(case, spec, case.bytes(1, 32, 7, 7), 1, 77, added=added)


def test_bounded_depthwise(integers):
    case, spec = Overflowing(integers, 5, False, True), Depthwise(1, 9, 9, 20, SAME, Requantize(bounded=True), True)
    check_conv(case, spec, case.bytes(1, 20, 9, 9), 20, 77)


# With what is special about them: tiles of pixels, vectors of outputs.
LAYERS = {
    "an odd number of full tiles, an odd vector": Pointwise(1, 16, 17, 16, 40, Requantize("after")),
    "chunks of panels, the last one smaller": Pointwise(1, 7, 7, 80, 16 * 11, Requantize("after")),
    "chunks of panels, one vector left": Pointwise(1, 5, 9, 64, 16 * 9, Requantize()),
    "tiles that go on from line to line": DirectConv(2, 7, 7, 32, 80, SAME, 1, False, Requantize("after"), True),
    "the same without padding": DirectConv(1, 6, 7, 16, 32, Window((2, 2)), epilogue=Requantize()),
    "the same for one vector": DirectConv(None, 5, 5, 16, 16, SAME, epilogue=Requantize(), bordered=True),
    "half empty tiles of lines": DirectConv(1, 13, 13, 16, 48, STRIDED, epilogue=Requantize(), bordered=True),
}


@pytest.mark.skipif("amx" not in integer_machines(), reason="this processor has no matrix unit")
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_order(name, cores):
    spec = LAYERS[name]
    machine = integer_machines()["amx"]
    case = Case(Runner(replace(machine, arithmetic=replace(machine.arithmetic, cores=cores))), 3, False)
    x = case.bytes(spec.batch or 2, spec.in_channels, spec.height, spec.width)
    check_conv(case, spec, x, 1, 77, added=spec.epilogue.residual is not None)


def test_description():
    """Small maps go on from line to line, where full tiles cost less than short ones."""
    layer = LAYERS["tiles that go on from line to line"]
    assert describe(layer, Amx(16, 32)) == "matrix 3x3, 2 x 2 tiles of 16 pixels x 16"
    strided = replace(layer, window=STRIDED)
    assert describe(strided, Amx(16, 32)) == "matrix 3x3, 4 x 1 tiles of 4 pixels x 16"
