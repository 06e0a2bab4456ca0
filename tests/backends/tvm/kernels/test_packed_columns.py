"""Windows over images of few channels whose columns are packed for the dot product, against int64: equal."""

from dataclasses import replace

import pytest

from planish.backends.tvm.kernels import DirectConv, Requantize, Window
from planish.backends.tvm.kernels.columns_plan import plan, takes

from .conftest import Runner
from .portable import PortableSdot
from .test_integers import Case, check_conv

SEVEN = Window((7, 7), (2, 2), (3, 3, 3, 3))
# batch, height, width, channels, outputs, window; and words that are packed once more. Columns leave three bytes, two,
# one, three beside the image, none, none, three.
SHAPES = {
    "stem": ((None, 17, 18, 3, 36, SEVEN), 7),
    "two channels": ((2, 13, 19, 2, 36, SEVEN), 7),
    "five by five": ((1, 9, 11, 3, 64, Window((5, 5), padding=(2, 2, 2, 2))), 7),
    "beside the image": ((1, 6, 5, 1, 40, Window((5, 4), (2, 1), (6, 6, 5, 5))), 3),
    "side by side": ((3, 12, 9, 3, 8, Window((4, 4), (4, 4))), 0),
    "one output": ((1, 4, 4, 3, 5, Window((4, 4))), 0),
    "rows apart": ((1, 15, 10, 3, 20, Window((7, 4), padding=(0, 3, 1, 2), dilation=(2, 1))), 6),
}


@pytest.fixture(params=[False, True], ids=["random", "saturating"])
def case(widest, request: pytest.FixtureRequest) -> Case:
    return Case(Runner(replace(widest.machine, arithmetic=PortableSdot(4, 32))), 7, request.param)


@pytest.mark.parametrize("name", SHAPES)
def test_packed_columns(case, name):
    (batch, height, width, channels, outputs, window), tails = SHAPES[name]
    zero_point, added = (-128, False) if case.extreme else (77, name == "stem")
    epilogue = Requantize("after" if added else None)
    spec = DirectConv(batch, height, width, channels, outputs, window, epilogue=epilogue, bordered=any(window.padding))
    assert takes(spec, case.runner.arithmetic) and plan(spec, case.runner.arithmetic).tails == tails
    x = case.bytes(batch or 2, channels, height, width)
    check_conv(case, spec, x, 1, zero_point, added=added)


@pytest.mark.parametrize(
    "spec",
    [
        DirectConv(1, 9, 9, 4, 8, SEVEN),  # every byte is a channel's
        DirectConv(1, 9, 9, 3, 8, Window((3, 3))),  # nine bytes take three words as well
        DirectConv(1, 9, 9, 3, 8, Window((7, 7), dilation=(1, 2), padding=(3, 3, 6, 6))),  # columns that lie apart
        DirectConv(1, 9, 3, 3, 8, SEVEN),  # rows of fewer pixels than a register holds
        DirectConv(1, 9, 9, 3, 9, SEVEN, groups=3),
    ],
    ids=str,
)
def test_what_is_not_packed(spec):
    assert not takes(spec, PortableSdot(4, 32))
