"""`CompiledModel.profile`: every kernel call once, with the work that its shape asks for."""

import pytest
import torch
from torch import nn

import planish
from planish.ir.errors import UsageError


@pytest.fixture(scope="module")
def compiled() -> planish.CompiledModel:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 4))
    return planish.compile(model.eval(), (torch.randn(1, 3, 10, 12),), batch=1)


def test_every_call_is_timed_and_its_work_counted(compiled):
    profile = compiled.profile(runs=2)
    macs = {layer.family: layer.macs for layer in profile.layers if layer.macs}
    assert macs == {"direct 3x3": 10 * 12 * 9 * 3 * 8, "pointwise": 10 * 12 * 8 * 16, "dense": 16 * 4}
    pointwise = next(layer for layer in profile.layers if layer.family == "pointwise")
    assert pointwise.bytes >= 4 * (10 * 12 * (8 + 16) + 8 * 16 + 16)
    assert all(layer.seconds > 0 for layer in profile.layers)
    assert all(0 < layer.efficiency < 10 for layer in profile.layers if layer.bound)
    assert profile.seconds == pytest.approx(sum(layer.seconds for layer in profile.families()))
    assert list(profile.peaks) == ["fp32"]
    assert profile.peaks["fp32"] > 1e8


def test_it_is_printed_by_family_and_by_layer(compiled):
    lines = str(compiled.profile(torch.randn(1, 3, 10, 12), runs=1)).splitlines()
    assert lines[0].startswith("one inference ")
    first = [line.split()[0] for line in lines if line and not line.startswith("─")]
    assert {"family", "layer", "pointwise", "linear"} <= set(first)


def test_wrong_calls_say_what_is_wrong(compiled):
    with pytest.raises(UsageError, match="runs=0"):
        compiled.profile(runs=0)
    with pytest.raises(UsageError, match="f64"):
        compiled.profile(torch.zeros(1, 3, 10, 12, dtype=torch.float64))
    board = planish.compile(nn.Linear(4, 4), (torch.randn(1, 4),), target="raspberry-pi-4")
    with pytest.raises(UsageError, match="raspberry-pi-4"):
        board.profile()
