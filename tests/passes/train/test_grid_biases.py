"""Biases that are trained as integers hold them."""

import math

import pytest
import torch
from aware_cases import DATA, run
from torch import nn
from train_cases import conv_graph

from planish.ir.capture import capture
from planish.ir.ops import arguments
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.rules import Roles
from planish.passes.quantize.settings import bias_and_input
from planish.passes.train.grid_biases import GridBiases, on_grid

COARSE = "insert-fake-quant{weight-bits=4, activation-bits=4}, calibrate"


def steps(graph):
    """Each bias of the conv graph in steps of its int32 sums, in float64."""
    found = {}
    for product in graph.calls("conv2d", "linear"):
        call = arguments(product)
        _, read = bias_and_input(graph, Roles(graph), call.weight)
        scales = (graph.weight(node) for node in (arguments(read).scale, arguments(call.weight).scale))
        found[str(call.bias.target)] = graph.weight(call.bias).detach().double() / math.prod(scales).double()
    return found


@pytest.mark.parametrize("options", ["", ", scales=learned", ", scales=learned, optimizer=adamw, early-stop=1"])
def test_at_four_bits_what_was_trained_equals_its_integers(options):
    """Calibrated, rounded biases move whole channels. Trained, they are on their grids and nothing is left to round."""
    x = torch.cat([x for x, _ in DATA])
    seen = []

    def evaluate(graph):
        seen.append(steps(graph))
        return -float(len(seen))  # the first is the best

    before, _ = run(f"fold-batch-norm, {COARSE}", conv_graph())
    after, _ = run(f"finetune{{epochs=2, lr=0.003{options}}}", before, evaluate=evaluate)
    off, on = (max(float((s - s.round()).abs().max()) for s in steps(graph).values()) for graph in (before, after))
    assert off > 0.1 and on < 1e-3  # float32 holds a multiple up to 2**-24 of it
    assert all(float((s - s.round()).abs().max()) < 1e-3 for shown in seen for s in shown.values())
    with torch.no_grad():
        gaps = [float((Pipeline.parse("lower-integers").run(g).graph(x) - g(x)).abs().max()) for g in (before, after)]
        assert gaps[0] > 5e-3 and gaps[1] < 1e-5 * float(after(x).abs().max())  # float32 sums of the last layer


def test_a_bias_on_its_grid_has_the_gradient_of_one_that_is_not():
    bias = torch.tensor([0.26, -1.0, 0.74], requires_grad=True)
    rounded = on_grid(bias, torch.tensor(0.5), torch.tensor([1.0, 3.0, 0.5]))
    assert rounded.tolist() == [0.5, -1.5, 0.75]
    (gradient,) = torch.autograd.grad(rounded, bias, torch.tensor([1.0, 2.0, 3.0]))
    assert gradient.tolist() == [1.0, 2.0, 3.0]
    assert on_grid(torch.tensor([0.3, 0.6]), torch.tensor(1.0), torch.tensor([0.5])).tolist() == [0.5, 0.5]


def test_a_bias_of_two_layers_stays():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.bias = self.a.bias

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tied().eval()
        x = torch.randn(8, 6)
    graph = run(COARSE, capture(model, (x,)), [x])[0]
    biases = GridBiases(graph)
    assert len(biases.all) == 2
    before = graph.weight("a.bias").detach().clone()
    biases.write()
    assert torch.equal(graph.weight("a.bias"), before)
