"""Depthwise windows two rows at a time: what LLVM makes of them, and their bytes on an emulated board."""

import re

import pytest
import torch
from torch import nn

import planish
from planish.backends.c.compile import compile_kernels
from planish.backends.target import Target
from planish.backends.tvm.arithmetic import Smull, Vmull
from planish.backends.tvm.build import tvm_target
from planish.backends.tvm.kernels import Depthwise, Requantize, Window, prim_func, zipped_rows

from .assembly import innermost_loops

BOARD = Target.get("raspberry-pi-4")
CHANNELS, HEIGHT, WIDTH = 16, 9, 11
# kernel, stride, padding, dilation: even and odd rows, images that cut one, two or all rows off, gaps between rows.
WINDOWS = [
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (0, 1), (1, 1)),
    ((5, 5), (1, 1), (2, 2), (1, 1)),
    ((5, 3), (2, 1), (4, 0), (2, 2)),
    ((2, 2), (1, 1), (1, 1), (1, 1)),
    ((3, 2), (1, 2), (5, 0), (1, 1)),
]


class Windows(nn.Module):
    """A depthwise convolution of each window: from bytes to floats, and from bytes to bytes, fused with a 1x1
    convolution in front of it and read by another one."""

    def __init__(self):
        super().__init__()
        convs = [nn.Conv2d(CHANNELS, CHANNELS, *window, groups=CHANNELS) for window in WINDOWS]
        fused = [nn.Conv2d(24, 24, *window, groups=24) for window in WINDOWS]
        self.alone, self.fused = nn.ModuleList(convs), nn.ModuleList(fused)
        self.before = nn.ModuleList(nn.Conv2d(CHANNELS, 24, 1) for _ in WINDOWS)
        self.behind = nn.ModuleList(nn.Conv2d(24, 24, 1) for _ in WINDOWS)
        with torch.no_grad():
            for conv in (*convs, *fused):
                # All at the ends of their grid: of one sign, or of both.
                signs = torch.ones_like(conv.weight)
                signs[1::2] = torch.randn_like(signs[1::2]).sign()
                conv.weight[:8] = signs[:8]

    def forward(self, x):
        alone = [conv(x) for conv in self.alone]
        chains = zip(self.before, self.fused, self.behind, strict=True)
        return (*alone, *(behind(fused(torch.relu(before(x)))) for before, fused, behind in chains))


def test_the_bytes_of_the_contract():
    """Two of three inputs are at an end of their grid: pairs of products are as large as they get."""
    recipe = "insert-fake-quant{activations=int8}, calibrate, lower-integers"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model, x = Windows().eval(), torch.randn(1, CHANNELS, HEIGHT, WIDTH)
    graph = planish.Pipeline.parse(recipe).run(planish.capture(model, (x,)), planish.Context(data=[x / 3])).graph
    compiled = planish.compile(graph, recipe="", batch=1, target=BOARD.name)
    kinds = [layer["kernel"] for layer in compiled.report.layers if "depthwise" in layer["kernel"]]
    assert len(kinds) == 2 * len(WINDOWS) and sum("expand" in kind for kind in kinds) == len(WINDOWS)
    assert all(map(torch.equal, compiled(x), graph(x)))


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5)])
def test_the_other_pipe_adds(kernel):
    """Only the row without a second one is added lane by lane."""
    spec = Depthwise(1, 28, 28, 32, Window(kernel, padding=(kernel[0] // 2,) * 4), Requantize())
    text = compile_kernels({"kernel": prim_func(spec, Smull(4, 32))}, tvm_target(BOARD), "").read_assembly()
    counts = {name: len(re.findall(rf"\b{name}\s+v", text)) for name in ("smull", "smlal", "sadalp", "zip1", "zip2")}
    assert counts["zip1"] == counts["zip2"] > 0 and counts["sadalp"] > 0
    assert not re.search(r"\b(?:smull2|smlal2|sshll)\s+v", text)  # nothing is widened, or taken apart
    assert not any("sadalp" in line and "saddw" in line for loop in innermost_loops(text) for line in loop)


def test_where_rows_are_zipped():
    window, row = Window((3, 3)), Window((1, 3))
    assert zipped_rows.takes(window, Smull(4, 32), 2)
    assert not zipped_rows.takes(row, Smull(4, 32), 2)  # there is one row
    assert not zipped_rows.takes(window, Smull(4, 32), 1)  # half of eight channels
    assert not zipped_rows.takes(window, Vmull(4, 16), 2)  # sixteen registers
