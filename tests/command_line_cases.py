"""A model's file for the command line, and calls of it."""

import json

from typer.testing import CliRunner

from planish.__main__ import app

SOURCE = '''
import sys
import time

import torch
from torch import nn


def net():
    """A conv, a batch norm, a pointwise conv and a head."""
    print("printed by the model's file")
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU()
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)), torch.randn(1, 3, 8, 8)


def spoiled():
    model, inputs = net()
    with torch.no_grad():
        model[0].weight[1, 2] = float("nan")
    return model, inputs


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x


def branch():
    return Branch(), torch.randn(2, 3)


def slow():
    print("working", file=sys.stderr, flush=True)
    time.sleep(60)


def batches():
    for seed in range(2):
        yield torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def nothing():
    return []


def nans():
    return [torch.full((4, 3, 8, 8), float("nan"))]


def small_images():
    return [torch.zeros(4, 3, 8, 7)]
'''
QUANTIZE = "fold-batch-norm, insert-fake-quant, calibrate"


def call(*words, env=None):
    return CliRunner().invoke(app, list(map(str, words)), env=env)


def document(result):
    """The one JSON document that stdout is."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
