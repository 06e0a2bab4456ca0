"""Cross-layer equalization: where factors move, what they are, and that the model stays what it was."""

import numpy as np
import pytest
import torch
from example_graphs import example_graph, made_once
from models import EXAMPLES
from torch import nn
from torch.nn import functional

from planish.ir.capture import capture
from planish.ir.errors import UsageError, VerifyError
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.accuracy.equalize import Equalize


class Net(nn.Module):
    """conv -> between -> conv, with layers that `between` may use. Channel ranges are far apart."""

    def __init__(self, between):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 4, 3, groups=2)
        self.transposed = nn.ConvTranspose2d(6, 5, 3, stride=2)
        self.second = nn.Conv2d(6, 4, 3, padding=1)
        self.last = nn.Conv2d(12, 4, 1)
        self.flat = nn.Linear(6 * 64, 5)
        self.pooled = nn.Linear(6, 5)
        self.wide = nn.Linear(8, 5)
        self.single = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.slope = nn.Parameter(torch.full((6,), 0.2))
        self.between = between
        with torch.no_grad():
            self.first.weight *= torch.logspace(-2, 2, 6).view(-1, 1, 1, 1)

    def forward(self, x):
        return self.between(self, self.first(x))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@made_once
def graph_of(between, dtype=torch.float64):
    return capture(Net(between).to(dtype).eval(), (X.to(dtype),))


def equalized(graph, ctx=None, **options):
    outcome = Pipeline([Equalize(**options)]).run(graph, ctx)
    return outcome.graph, outcome.steps[0].result


FIRES = {
    "conv": lambda m, y: m.second(y),
    "relu": lambda m, y: m.second(torch.relu(y)),
    "leaky relu": lambda m, y: m.second(functional.leaky_relu(y, 0.1)),
    "prelu": lambda m, y: m.second(functional.prelu(y, m.slope)),
    "max pool": lambda m, y: m.second(functional.max_pool2d(torch.relu(y), 2)),
    "avg pool": lambda m, y: m.second(functional.avg_pool2d(y, 2)),
    "zero padding": lambda m, y: m.second(functional.pad(y, (1, 0, 2, 1))),
    "upsampling": lambda m, y: m.second(functional.interpolate(y, scale_factor=2)),
    "depthwise with multiplier": lambda m, y: m.last(torch.relu(m.depthwise(torch.relu(y)))),
    "grouped": lambda m, y: m.grouped(torch.relu(y)),
    "transposed": lambda m, y: m.transposed(torch.relu(y)),
    "mean and linear": lambda m, y: m.pooled(torch.relu(y).mean((2, 3))),
    "pool, flatten and linear": lambda m, y: m.pooled(functional.adaptive_avg_pool2d(y, 1).flatten(1)),
    "flatten and linear": lambda m, y: m.flat(torch.relu(y).flatten(1)),
}


@pytest.mark.parametrize("case", FIRES)
def test_it_moves_factors_and_the_model_stays(case):
    graph = graph_of(FIRES[case])
    result_graph, result = equalized(graph)
    assert result.changed >= 1, result.skipped
    low, high = result.details["pairs"][0]["factors"]
    assert high > 5 * low  # the channels were 1e4 apart
    # Weights are float64 here: only their rounding is left.
    torch.testing.assert_close(result_graph(X.double()), graph(X.double()), rtol=1e-11, atol=1e-11)


def test_ranges_are_the_geometric_mean_and_a_second_run_changes_nothing():
    graph = graph_of(FIRES["relu"])
    done, _ = equalized(graph)
    before, after = graph.weights, done.weights
    outputs = before["first.weight"].abs().amax((1, 2, 3)).detach().numpy()
    inputs = before["second.weight"].abs().amax((0, 2, 3)).detach().numpy()
    expected = np.sqrt(outputs * inputs)
    np.testing.assert_allclose(after["first.weight"].abs().amax((1, 2, 3)).detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(after["second.weight"].abs().amax((0, 2, 3)).detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(
        after["first.bias"].detach().numpy(), before["first.bias"].detach().numpy() * expected / outputs, rtol=1e-12
    )
    again, result = equalized(done)
    assert result.changed == 0
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in after.items())


def test_three_layers_get_the_same_range():
    """The fixpoint of section 4.1.2: the cube root of the product of the three ranges."""
    graph = graph_of(lambda m, y: m.second(torch.relu(m.single(torch.relu(y)))))
    ranges = {"first.weight": (1, 2, 3), "single.weight": (1, 2, 3), "second.weight": (0, 2, 3)}
    before = torch.stack([graph.weights[name].detach().abs().amax(dims) for name, dims in ranges.items()])
    done = equalized(graph, rounds=200)[0].weights
    for name, dims in ranges.items():  # rounds end when no factor is further than 1e-3 from 1
        torch.testing.assert_close(done[name].abs().amax(dims), before.prod(0) ** (1 / 3), rtol=5e-3, atol=0)


def test_a_dead_channel_is_left():
    graph = graph_of(FIRES["relu"])
    with torch.no_grad():
        graph.weights["first.weight"][2] = 0
    done, result = equalized(graph)
    assert result.changed == 1
    assert torch.equal(done.weights["second.weight"][:, 2], graph.weights["second.weight"][:, 2])


SKIPS = {
    "several readers": (lambda m, y: m.second(torch.relu(y) + y), "'conv2d' has several readers"),
    "no reader": (lambda m, y: y, "it is an output of the model"),
    "a call in between": (lambda m, y: m.second(torch.sigmoid(y)), "'sigmoid' (sigmoid) does not pass a factor"),
    "a sum": (lambda m, y: m.second(y + 1), "'add' (add) does not pass a factor"),
    "other padding": (lambda m, y: m.second(functional.pad(y, (1, 1), value=1.0)), "pads"),
    "a mean over channels": (lambda m, y: m.flat(y.mean(1).flatten(1).repeat(1, 6)), "is over the channels"),
    "another dim": (lambda m, y: m.wide(torch.relu(y)), "'linear' reads another dim than its channels"),
    "relu6": (lambda m, y: m.second(functional.relu6(y)), "'relu6' clips at other than zero"),
    "a shared weight": (lambda m, y: m.first(torch.relu(y)[:, :3]), "its weight 'first.weight' is shared"),
}


@pytest.mark.parametrize("case", SKIPS)
def test_skips(case):
    between, reason = SKIPS[case]
    graph = graph_of(between)
    done, result = equalized(graph)
    assert result.changed == 0
    assert any(reason in skip.why for skip in result.skipped), result.skipped
    assert all(torch.equal(done.weights[name], tensor) for name, tensor in graph.weights.items())


CLIPS = {
    "relu6": lambda y: functional.relu6(y),
    "hardtanh": lambda y: functional.hardtanh(y, -0.5, 2.0),
    "clamp": lambda y: y.clamp(-1.0, 1.5),
    "clamp_min": lambda y: y.clamp_min(0.3),
    "clamp_max": lambda y: y.clamp_max(0.3),
}


@pytest.mark.parametrize("case", CLIPS)
def test_bounds_per_channel_are_exact(case):
    clip = CLIPS[case]
    graph = graph_of(lambda m, y: m.second(clip(y)))
    done, result = equalized(graph, clips="per-channel")
    assert result.changed == 1
    (call,) = done.calls("clamp")
    bounds = [t for name, t in done.weights.items() if name.endswith(("_low", "_high"))]
    assert bounds and all(list(bound.shape) == [6, 1, 1] for bound in bounds)
    assert call.target is torch.ops.aten.clamp.Tensor
    torch.testing.assert_close(done(X.double()), graph(X.double()), rtol=1e-11, atol=1e-11)
    # What is per channel already stays: a second run declines.
    assert "computed" in equalized(done, clips="per-channel")[1].skipped[0].why


def test_bounds_of_linear_layers_run_along_the_last_dim():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU6(), nn.Linear(7, 3)).double()
    x = 5 * torch.randn(2, 4, 5, dtype=torch.float64)
    graph = capture(model.eval(), (x,))
    done, result = equalized(graph, clips="per-channel")
    assert result.changed == 1
    torch.testing.assert_close(done(x), graph(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vgg", "mlp"])
def test_whole_models_in_float32(name):
    x = torch.randn(2, *EXAMPLES[name][1])
    graph = example_graph(name)
    outcome = Pipeline.parse("fold-batch-norm, equalize{clips=per-channel}").run(graph)
    assert outcome.steps[1].result.changed >= 1
    # float32 rounding of each weight and sum, 6e-8, grown over some twenty layers
    torch.testing.assert_close(outcome.graph(x), graph(x), rtol=1e-4, atol=1e-4)


def test_a_wrong_factor_is_caught(monkeypatch):
    """The proof sees a channel's factor that the next layer does not get."""
    original = Equalize.run.__globals__["along"]
    monkeypatch.setitem(Equalize.run.__globals__, "along", lambda channels, *rest: original(channels.roll(1), *rest))
    with pytest.raises(VerifyError, match="outputs moved"):
        equalized(graph_of(FIRES["relu"]))


class High(nn.Module):
    """A conv whose channel 0 is never below 5 before the relu."""

    def __init__(self, padding=0):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3, padding=padding)
        with torch.no_grad():
            self.first.weight[0] = self.first.weight[0].clamp(-0.05, 0.05)
            self.first.bias[0] = 20.0

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_high_biases_are_absorbed():
    data = [X.double(), X.double() * 0.5]
    graph = capture(High().double().eval(), (X.double(),))
    done, result = equalized(graph, Context(data=data), absorb=True)
    assert result.details["absorbed"][0]["channels"] == 1
    assert done.weights["first.bias"][0] < graph.weights["first.bias"][0] / 2
    for batch in data:  # on the data seen it is exact
        torch.testing.assert_close(done(batch), graph(batch), rtol=1e-11, atol=1e-11)


def test_absorption_stops_at_padding():
    graph = capture(High(padding=1).double().eval(), (X.double(),))
    _, result = equalized(graph, Context(data=[X.double()]), absorb=True)
    assert result.details["absorbed"] == []


def test_options_are_checked_and_absorb_needs_data():
    with pytest.raises(UsageError, match="expected keep or per-channel"):
        Equalize(clips="all")
    with pytest.raises(UsageError, match="'rounds' is 0"):
        Equalize(rounds=0)
    with pytest.raises(UsageError, match="no data was given"):
        Pipeline.parse("equalize{absorb=true}").run(graph_of(FIRES["relu"]), Context())
    text = "equalize{rounds=5, clips=per-channel, absorb=true}"
    assert str(Pipeline.parse(text)) == text


def test_no_fuel_changes_nothing():
    graph = graph_of(FIRES["relu"])
    done, result = equalized(graph, Context(fuel=Fuel(0)))
    assert result.changed == 0
    assert torch.equal(done.weights["first.weight"], graph.weights["first.weight"])
