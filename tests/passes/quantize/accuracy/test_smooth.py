"""SmoothQuant: factors against the paper's formula, exactness in float64, and refusals."""

import numpy as np
import pytest
import torch
from example_graphs import made_once
from torch import nn
from torch.nn import functional

from planish.ir.capture import capture
from planish.ir.errors import UsageError, VerifyError
from planish.ir.graph import Graph
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.accuracy.smooth import Smooth


class Block(nn.Module):
    """A transformer block before its residual; one feature of the norms is an outlier."""

    def __init__(self, norm=nn.LayerNorm, between=lambda n: n):
        super().__init__()
        self.norm1, self.norm2 = norm(8), norm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.between = between
        with torch.no_grad():
            for module in (self.norm1, self.norm2):
                module.weight *= torch.logspace(-1, 2, 8)

    def forward(self, x):
        n = self.between(self.norm1(x))
        y = x + functional.scaled_dot_product_attention(self.q(n), self.k(n), self.v(n))
        return y + self.down(functional.gelu(self.up(self.norm2(y))))


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DATA = [X, 2 * X + 1]


def graph_of(model):
    return capture(model.double().eval(), (X,))


@made_once
def block_graph(**options) -> Graph:
    return graph_of(Block(**options))


def smoothed(graph, data=DATA, **options):
    fuel = options.pop("fuel", None)
    outcome = Pipeline([Smooth(**options)]).run(graph, Context(data=data, fuel=Fuel(fuel)))
    return outcome.graph, outcome.steps[0].result


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_factors_are_those_of_the_paper(norm, alpha):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Block(norm)
    graph = graph_of(model)
    done, result = smoothed(graph, alpha=alpha)
    assert result.changed == 2 and result.skipped == ()
    torch.testing.assert_close(done(X), graph(X), rtol=1e-11, atol=1e-11)  # float64 rounding
    activations = np.max([model.norm1(x).detach().abs().amax((0, 1)).numpy() for x in DATA], axis=0)
    weights = np.max([layer.weight.detach().abs().amax(0).numpy() for layer in (model.q, model.k, model.v)], axis=0)
    factor = activations**alpha / weights ** (1 - alpha)
    np.testing.assert_allclose(
        done.weights["norm1.weight"].detach().numpy(), model.norm1.weight.detach().numpy() / factor, rtol=1e-12
    )
    np.testing.assert_allclose(
        done.weights["k.weight"].detach().numpy(), model.k.weight.detach().numpy() * factor, rtol=1e-12
    )


MOVES = {
    "dropout": lambda n: functional.dropout(n, 0.1, False),
    "view": lambda n: n.reshape(-1, 8).view(-1, 5, 8),
    "transpose": lambda n: n.transpose(0, 1).transpose(0, 1),
    "permute": lambda n: n.permute(1, 0, 2).permute(1, 0, 2),
    "select and unsqueeze": lambda n: n.select(1, 0).unsqueeze(1),
}


@pytest.mark.parametrize("case", MOVES)
def test_calls_that_move_values_are_passed(case):
    graph = block_graph(between=MOVES[case])
    done, result = smoothed(graph)
    assert result.changed == 2, result.skipped
    torch.testing.assert_close(done(X), graph(X), rtol=1e-11, atol=1e-11)


def test_outliers_shrink_and_int8_gets_better():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Block().eval()
    x = X.float()
    graph = capture(model, (x,))
    noise = {}
    for text in ("insert-fake-quant, calibrate", "smooth, insert-fake-quant, calibrate"):
        quantized = Pipeline.parse(text).run(graph, Context(data=[x])).graph
        noise[text] = float((quantized(x) - graph(x)).detach().square().mean())
    plain, smooth = noise.values()
    assert smooth < 0.7 * plain  # it comes to half


class Readers(nn.Module):
    def __init__(self, function, norm=None):
        super().__init__()
        self.norm = norm or nn.LayerNorm(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.function = function

    def forward(self, x):
        return self.function(self, self.norm(x))


SKIPS = {
    "no scale": (lambda m, n: m.first(n), nn.LayerNorm(8, elementwise_affine=False), "it has no scale"),
    "two dims": (lambda m, n: m.first(n), nn.LayerNorm((5, 8)), "it runs over 2 dims"),
    "another reader": (lambda m, n: m.first(n) + n, None, "'add' (add) reads it too"),
    "a transpose of the features": (
        lambda m, n: m.first(n.transpose(1, 2).transpose(1, 2)), None, "'transpose' (transpose) reads it too",
    ),
    "a shared weight": (
        lambda m, n: m.first(n) + m.first(torch.relu(m.second(n))), None, "its weight 'first.weight' is shared",
    ),
    "an output": (lambda m, n: (m.first(n), n), None, "'output' (output) reads it too"),
}  # fmt: skip


@pytest.mark.parametrize("case", SKIPS)
def test_skips(case):
    function, norm, reason = SKIPS[case]
    graph = graph_of(Readers(function, norm))
    done, result = smoothed(graph)
    assert result.changed == 0
    assert reason in result.skipped[0].why
    assert all(torch.equal(done.weights[name], tensor) for name, tensor in graph.weights.items())


def test_features_that_are_zero_stay():
    model = Block()
    with torch.no_grad():
        model.norm1.weight[3] = model.norm1.bias[3] = 0
        model.up.weight[:, 2] = 0
    graph = graph_of(model)
    done, _ = smoothed(graph)
    assert torch.equal(done.weights["q.weight"][:, 3], graph.weights["q.weight"][:, 3])
    assert torch.equal(done.weights["norm2.weight"][2], graph.weights["norm2.weight"][2])


def test_a_reader_that_is_missed_is_caught(monkeypatch):
    names = Smooth.run.__globals__
    original = names["_readers"]
    monkeypatch.setitem(names, "_readers", lambda graph, norm: original(graph, norm)[:1])
    with pytest.raises(VerifyError, match="outputs moved"):
        smoothed(block_graph())


def test_options_data_and_fuel():
    with pytest.raises(UsageError, match=r"'alpha' is 1\.5; expected 0 to 1"):
        Smooth(alpha=1.5)
    with pytest.raises(UsageError, match="no data was given"):
        Pipeline([Smooth()]).run(block_graph(), Context())
    graph = block_graph()
    done, result = smoothed(graph, fuel=1)
    assert result.changed == 1
    assert torch.equal(done.weights["norm2.weight"], graph.weights["norm2.weight"])
    assert str(Pipeline.parse("smooth{alpha=0.8}")) == "smooth{alpha=0.8}"
