"""ResNet-18 and ResNet-50 as in He et al. 2015, with the stride of a bottleneck in its 3x3 (version 1.5)."""

import torch
from torch import nn


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _basic(inputs: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(_normed(inputs, width, 3, stride), nn.ReLU(), _normed(width, width, 3))


def _bottleneck(inputs: int, width: int, stride: int) -> nn.Module:
    squeezed = nn.Sequential(_normed(inputs, width, 1), nn.ReLU(), _normed(width, width, 3, stride), nn.ReLU())
    return nn.Sequential(squeezed, _normed(width, 4 * width, 1))


def _resnet(block, expansion: int, depths: tuple[int, ...]) -> nn.Module:
    stem = nn.Sequential(_normed(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    layers, inputs = [], 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for i in range(depth):
            stride = 2 if i == 0 and stage else 1
            outputs = width * expansion
            same = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if same else _normed(inputs, outputs, 1, stride)
            layers.append(Residual(block(inputs, width, stride), shortcut))
            inputs = outputs
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))
    return nn.Sequential(stem, *layers, head)


def resnet18() -> nn.Module:
    """1.8 G multiply-adds at 224 x 224."""
    return _resnet(_basic, 1, (2, 2, 2, 2))


def resnet50() -> nn.Module:
    """4.1 G multiply-adds at 224 x 224."""
    return _resnet(_bottleneck, 4, (3, 4, 6, 3))
