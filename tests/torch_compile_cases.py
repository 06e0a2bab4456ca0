"""Models for torch.compile, and a run of one beside PyTorch."""

from typing import Any

import torch
from torch import Tensor, nn

import planish

# Sums in another order: float32 has seven digits, and these models add up a few hundred terms.
TOLERANCE: Any = {"rtol": 1e-4, "atol": 1e-5}


class Calls(nn.Module):
    """A model that is one function of its layers and inputs."""

    def __init__(self, function, **layers: nn.Module):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.eval()

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 5)
        nn.init.uniform_(self.norm1.get_buffer("running_var"), 0.5, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = nn.functional.relu6(self.conv2(x), inplace=True) + x
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class TransformerBlock(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def run(model: nn.Module, *args, compiled=None, **kwargs):
    """Compile, run without gradients, compare with PyTorch; gives what was compiled and its new reports."""
    before = len(planish.reports())
    compiled = torch.compile(model, backend="planish") if compiled is None else compiled
    with torch.no_grad():
        actual, expected = compiled(*args, **kwargs), model(*args, **kwargs)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    return compiled, planish.reports()[before:]


def eager_ops(reports: list[planish.Report]) -> set[str]:
    return {op for report in reports for op, _ in report.eager}
