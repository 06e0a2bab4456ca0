"""NaN and infinities on emulated ARM boards, where instructions that clip and compare have rules of their own."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import planish

QEMU = pytest.mark.skipif(
    not (shutil.which("qemu-arm") or shutil.which("qemu-arm-static")), reason="qemu-user is not installed"
)


class Special(nn.Module):
    """Infinity, and NaN of it, through what clips, selects and exponentiates."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1, bias=False)
        self.conv = nn.Conv2d(4, 8, 1, bias=False)

    def forward(self, x):
        infinite = x * 3e38 * 10.0
        mixed = torch.cat([self.mix(infinite)[:, :, :3], x[:, :, 3:]], 2)  # infinities of both signs
        outputs = [f(self.conv(mixed)) for f in (F.relu6, F.relu, F.hardswish, torch.sigmoid, F.silu)]
        return (*outputs, F.max_pool2d(mixed, 2), F.relu6(infinite), mixed.softmax(-1))


@pytest.mark.parametrize("board", [pytest.param("raspberry-pi-2", marks=QEMU), "raspberry-pi-4"])
def test_nan_stays_and_infinity_is_clipped(board):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 4, 6, 6, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Special().eval()
    with torch.no_grad():
        wanted = model(x)
    got = planish.compile(model, (x,), target=board)(x)
    assert all(each.isnan().any() for each in (*wanted[:6], wanted[7]))
    for mine, theirs in zip(got, wanted, strict=True):
        # A few float32 roundings of numbers of order 1 on both sides.
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
