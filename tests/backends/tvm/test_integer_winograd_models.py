"""A network whose 3x3 layers are Winograd kernels of integers, as C programs of boards: the bytes of the reference."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import planish

RECIPE = "insert-fake-quant{activations=int8}, calibrate, lower-integers"
QEMU_32 = pytest.mark.skipif(
    not (shutil.which("qemu-arm") or shutil.which("qemu-arm-static")), reason="qemu-user is not installed"
)


class Residual(nn.Module):
    """Maps of whole tiles, of tiles of three, of both; one of two sources with an addition, one with channels that fill
    no vector."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.first, self.second = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1)
        self.odd, self.head = nn.Conv2d(32, 49, 3, padding=1), nn.Conv2d(49, 5, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.second(torch.cat([x, F.relu(self.first(x))], 1)))
        return self.head(F.hardswish(self.odd(F.max_pool2d(x, 2))))


@pytest.mark.parametrize("target", ["raspberry-pi-4", pytest.param("raspberry-pi-2", marks=QEMU_32)])
@pytest.mark.parametrize(("batch", "filtered"), [(1, 2), (2, 3)])
def test_the_bytes_of_the_reference(target, batch, filtered):
    """Calibrated on half of the input's range: the other half saturates. One image does not pay for the weights of the
    last layer, which four cores would wait for."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 16, 20, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual().eval()
    context = planish.Context(data=[x / 2])
    graph = planish.Pipeline.parse(RECIPE).run(planish.capture(model, (x,)), context).graph
    compiled = planish.compile(graph, recipe="", batch=batch, target=target)
    assert torch.equal(compiled(x), graph(x))
    kernels = [layer["kernel"] for layer in compiled.report.layers]
    assert sum("winograd" in kernel for kernel in kernels) == filtered, kernels
    assert not any("concat" in kernel for kernel in kernels)
