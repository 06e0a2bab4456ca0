"""Sums and residuals on ARM. With the dot product sums are floats by their bits, also where they leave 22 bits; without
it residuals are added as whole numbers."""

import pytest
import torch
from torch import nn

import planish
from planish.backends.tvm.arithmetic import Smull
from planish.backends.tvm.emit.integer_bounds import LARGEST_SUM, sum_ends
from planish.ir.ops import arguments

RECIPE = "insert-fake-quant{activations=int8}, calibrate, lower-integers"
WIDE = 64  # inputs of a 3x3 layer: 576 * 127 * 255 is beyond 2**22
OUTPUTS = (16, 20, 24)
SIZE = (5, 8)


class Residuals(nn.Module):
    """3x3 layers that add what they read: outputs in whole registers of bytes, and with rests of one and two vectors.

    Outputs have weights of one sign, every other one of the other sign, so that their sums are as large as they get.
    """

    def __init__(self):
        super().__init__()
        self.into = nn.ModuleList(nn.Conv2d(WIDE, outputs, 1) for outputs in OUTPUTS)
        self.layers = nn.ModuleList(nn.Conv2d(WIDE, outputs, 3, padding=1) for outputs in OUTPUTS)
        self.behind = nn.ModuleList(nn.Conv2d(outputs, 4, 1) for outputs in OUTPUTS)
        with torch.no_grad():
            for layer in self.layers:
                signs = torch.tensor([1.0, -1.0]).repeat(len(layer.weight) // 2)  # type: ignore[arg-type]
                layer.weight.copy_(layer.weight.abs() * signs.reshape(-1, 1, 1, 1))  # type: ignore[operator,union-attr]

    def forward(self, x):
        x = torch.relu(x)
        sums = [layer(x) + into(x) for layer, into in zip(self.layers, self.into, strict=True)]
        return tuple(behind(sum_) for sum_, behind in zip((torch.relu(sums[0]), *sums[1:]), self.behind, strict=True))


@pytest.fixture(scope="module")
def graph() -> planish.Graph:
    """Calibrated on a tenth of the input's range: sums reach far beyond their grids."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model, x = Residuals().eval(), torch.randn(1, WIDE, *SIZE)
    return planish.Pipeline.parse(RECIPE).run(planish.capture(model, (x,)), planish.Context(data=[x / 10])).graph


def spied(monkeypatch) -> list:
    """An entry for each addition of whole numbers that is emitted."""
    found, stored_sum = [], Smull.stored_sum
    monkeypatch.setattr(Smull, "stored_sum", lambda *args, **how: found.append(how) or stored_sum(*args, **how))
    return found


@pytest.mark.parametrize("target", ["raspberry-pi-5", "raspberry-pi-4"])
def test_the_bytes_of_the_contract(graph, target, monkeypatch):
    whole = spied(monkeypatch)
    compiled = planish.compile(graph, recipe="", batch=1, target=target)
    assert bool(whole) == (target == "raspberry-pi-4")
    drawn = torch.randn(1, WIDE, *SIZE, generator=torch.Generator().manual_seed(6))
    for x in (drawn, drawn / 20, torch.full_like(drawn, 9.0)):
        assert all(map(torch.equal, compiled(x), graph(x)))


def test_ties_go_to_even_whatever_the_zero_point(graph):
    """A multiplier of 1/32, inputs of a few steps, no biases: ties are frequent, few 1x1 sums leave the grid."""
    steps = graph.copy()
    calls = [node for node in steps.calls("requantize") if "conv2d" in node.name]
    with torch.no_grad():
        for node in calls:
            steps.weights[arguments(node).multiplier.target].fill_(1 / 32)
            steps.weights[arguments(arguments(node).acc).bias.target].zero_()
    assert {arguments(node).zero_point % 2 for node in calls} == {0, 1}
    x = 6e-3 * torch.randn(1, WIDE, *SIZE, generator=torch.Generator().manual_seed(7))
    compiled = planish.compile(steps, recipe="", batch=1, target="raspberry-pi-5")
    assert all(map(torch.equal, compiled(x), steps(x)))


@pytest.mark.parametrize("layer", range(len(OUTPUTS)))
def test_its_sums_leave_22_bits(graph, layer):
    """Where all inputs are at their end. Else the test above would say nothing about such sums."""
    weight, bias = (graph.weights[f"layers.{layer}.{name}"].numpy() for name in ("weight_int8", "bias_int32"))
    low, high = sum_ends(weight, bias, -128, "int8")
    assert high[::2].min() > LARGEST_SUM and low[1::2].max() < -LARGEST_SUM
