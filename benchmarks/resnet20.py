"""The CIFAR ResNet-20 of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

Three stages of three blocks of two 3x3 convs, 16-32-64 channels; where a stage begins, the shortcut takes every second
pixel and pads zero channels on both sides (option A). Names are those of the usual checkpoints.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, wide_in: int, wide_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide_out)
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide_out)
        self.padded = wide_out // 4 if stride > 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padded:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padded, self.padded))
        return torch.relu(y + x)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20(weights: Path) -> nn.Module:
    """The network in eval form with the weights of a safetensors file."""
    model = ResNet20()
    model.load_state_dict(load_file(weights), strict=False)
    return model.eval()
