"""MobileNetV2 (Sandler et al. 2018) and MobileNetV3-small (Howard et al. 2019)."""

import torch
from torch import nn


def _normed(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """Scales channels by a small network of their means."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        layers = nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1), nn.Hardsigmoid()
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), *layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale(x)


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze and excite, project; added to the input where shapes allow."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, act: type[nn.Module], excite: bool
    ):
        super().__init__()
        self.adds = stride == 1 and inputs == outputs
        layers = [_normed(inputs, hidden, 1, act=act)] if hidden != inputs else []
        layers.append(_normed(hidden, hidden, kernel, stride, hidden, act))
        if excite:
            layers.append(SqueezeExcite(hidden, _multiple_of_8(hidden / 4)))
        self.body = nn.Sequential(*layers, _normed(hidden, outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def _multiple_of_8(channels: float) -> int:
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def mobilenet_v2() -> nn.Module:
    """0.30 G multiply-adds at 224 x 224."""
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers: list[nn.Module] = [_normed(3, 32, 3, 2, act=nn.ReLU6)]
    inputs = 32
    for expansion, outputs, repeats, stride in rows:
        for i in range(repeats):
            block = InvertedResidual(inputs, inputs * expansion, outputs, 3, 1 if i else stride, nn.ReLU6, False)
            layers.append(block)
            inputs = outputs
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)
    return nn.Sequential(*layers, _normed(inputs, 1280, 1, act=nn.ReLU6), *head)


def mobilenet_v3_small() -> nn.Module:
    """0.06 G multiply-adds at 224 x 224."""
    relu, swish = nn.ReLU, nn.Hardswish
    rows = (
        (3, 16, 16, True, relu, 2), (3, 72, 24, False, relu, 2), (3, 88, 24, False, relu, 1),
        (5, 96, 40, True, swish, 2), (5, 240, 40, True, swish, 1), (5, 240, 40, True, swish, 1),
        (5, 120, 48, True, swish, 1), (5, 144, 48, True, swish, 1), (5, 288, 96, True, swish, 2),
        (5, 576, 96, True, swish, 1), (5, 576, 96, True, swish, 1),
    )  # fmt: skip
    layers: list[nn.Module] = [_normed(3, 16, 3, 2, act=swish)]
    inputs = 16
    for kernel, hidden, outputs, excite, act, stride in rows:
        layers.append(InvertedResidual(inputs, hidden, outputs, kernel, stride, act, excite))
        inputs = outputs
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(576, 1024), swish(), nn.Linear(1024, 1000)
    return nn.Sequential(*layers, _normed(inputs, 576, 1, act=swish), *head)
