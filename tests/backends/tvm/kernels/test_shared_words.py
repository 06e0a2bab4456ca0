"""Windows over images of few channels, whose pixels are four bytes: the inputs of a row are read once for all taps.

Where a pixel leaves bytes free, the columns of a window are packed (`packed_columns`).
"""

import re

import pytest
import torch
from torch import nn

import planish
from planish.backends.c.compile import compile_kernels
from planish.backends.target import Target
from planish.backends.tvm.arithmetic import Sdot
from planish.backends.tvm.build import tvm_target
from planish.backends.tvm.kernels import DirectConv, Requantize, Window, prim_func

from .assembly import innermost_loops

BOARD = Target.get("raspberry-pi-5")
# kernel, stride, padding: tiles that end with the image, or within four pixels of it; rows of too few taps; windows
# that lie beside the image.
WINDOWS = [
    ((7, 7), (2, 2), (3, 3)),
    ((5, 5), (1, 1), (2, 2)),
    ((4, 4), (1, 1), (0, 0)),
    ((1, 6), (1, 3), (0, 5)),
    ((3, 3), (1, 1), (1, 1)),
    ((4, 4), (4, 4), (0, 0)),
    ((5, 4), (2, 1), (6, 5)),
]


class Stems(nn.Module):
    def __init__(self, channels: int, windows: list):
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(channels, 36, *window) for window in windows)
        self.behind = nn.ModuleList(nn.Conv2d(36, 4, 1) for _ in windows)

    def forward(self, x):
        pairs = zip(self.first, self.behind, strict=True)
        return tuple(behind(torch.relu(first(x))) for first, behind in pairs)


# Words of each window that is packed, by hand: of 7x7x3 36 in six columns, which leave three bytes each, and one.
@pytest.mark.parametrize(
    ("channels", "windows", "words"),
    [(3, WINDOWS, [37, 19, 12, 12, 15]), (4, WINDOWS[2:4], [])],
    ids=["3", "4"],
)
def test_the_bytes_of_the_contract(channels, windows, words):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model, x = Stems(channels, windows).eval(), torch.randn(1, channels, 13, 19)
    recipe = "insert-fake-quant{activations=int8}, calibrate, lower-integers"
    graph = planish.Pipeline.parse(recipe).run(planish.capture(model, (x,)), planish.Context(data=[x / 2])).graph
    compiled = planish.compile(graph, recipe="", batch=1, target=BOARD.name)
    kernels = [layer["kernel"] for layer in compiled.report.layers]
    assert sum("direct" in kernel for kernel in kernels) == len(windows)
    assert [int(found[1]) for kernel in kernels if (found := re.search(r"in (\d+) words", kernel))] == words
    assert all(map(torch.equal, compiled(x), graph(x)))


@pytest.mark.parametrize(("channels", "taps"), [(3, 6), (4, 7)])
def test_inputs_are_read_once(channels, taps):
    """Four pixels of a 7x7 window of stride 2 read thirteen inputs in a row: four vectors beside those of weights.

    Where columns are packed, the first one goes with the last words of the others.
    """
    spec = DirectConv(1, 112, 112, channels, 64, Window((7, 7), (2, 2), (3, 3, 3, 3)), epilogue=Requantize())
    text = compile_kernels({"kernel": prim_func(spec, Sdot(4, 32))}, tvm_target(BOARD), "").read_assembly()
    products = [[line for line in loop if "sdot" in line] for loop in innermost_loops(text)]
    loop, lines = max(zip(innermost_loops(text), products, strict=True), key=lambda pair: len(pair[1]))
    assert {re.search(r"4b\[(\d)\]", line)[1] for line in lines} == set("0123")  # type: ignore[index]
    read = sum({"ldr": 1, "ldur": 1, "ldp": 2}.get(line.split()[0], 0) for line in loop if line.split())
    assert len(lines) == 4 * taps * 4 and read <= 4 + taps * 4
