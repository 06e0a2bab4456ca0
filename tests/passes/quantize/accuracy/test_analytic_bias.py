"""Analytic bias correction: closed forms against scipy and quadrature, chains against drawn samples."""

import numpy as np
import pytest
import torch
from example_graphs import example_graph
from models import EXAMPLES
from scipy import integrate, stats
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.ops import arguments
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.accuracy.normal import clipped, through

COARSE = "fold-batch-norm, insert-fake-quant{weight-bits=3}, calibrate"
ANALYTIC_EQUALIZED = COARSE.replace(", ", ", equalize, ", 1) + ", correct-bias{how=analytic}"
ANALYTIC = f"{COARSE}, correct-bias{{how=analytic}}"


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("low", [-np.inf, -0.4, 0.0])
@pytest.mark.parametrize("high", [np.inf, 6.0, 0.7])
def test_clipped_moments_are_scipys(low, high):
    means, deviations = float64(-3.0, -0.2, 0.5, 8.0), float64(0.1, 1.3, 0.8, 2.0)
    first, second = clipped(means, deviations.square(), float64(low), float64(high))
    for number, (mean, deviation) in enumerate(zip(means.tolist(), deviations.tolist(), strict=True)):
        below, above = stats.norm.cdf(low, mean, deviation), stats.norm.sf(high, mean, deviation)
        inside = stats.truncnorm((low - mean) / deviation, (high - mean) / deviation, mean, deviation)
        share = 1 - below - above
        moments = [share * inside.moment(power) if share > 1e-12 else 0.0 for power in (1, 2)]
        for power in (1, 2):
            moments[power - 1] += (below * low**power if below else 0) + (above * high**power if above else 0)
        # float64 throughout; scipy's own moments of far tails are good to 1e-9.
        assert float(first[number]) == pytest.approx(moments[0], rel=1e-8, abs=1e-9)
        assert float(second[number]) == pytest.approx(moments[1] - moments[0] ** 2, rel=1e-6, abs=1e-7)


def test_without_spread_a_clip_is_a_clip_and_what_is_unknown_stays_unknown():
    mean, variance = float64(-1.0, 0.5, 9.0, np.nan, 1.0), float64(0, 0, 0, 1.0, np.nan)
    first, second = clipped(mean, variance, torch.tensor(0.0), torch.tensor(6.0))
    assert first[:3].tolist() == [0.0, 0.5, 6.0] and second[:3].tolist() == [0.0, 0.0, 0.0]
    assert first[3:].isnan().all()
    assert through(torch.sigmoid, mean, variance)[0].isnan().tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("function", [nn.functional.hardswish, nn.functional.silu, torch.sigmoid, torch.relu])
def test_moments_through_a_function_are_those_of_quadrature(function):
    mean, deviation = float64(-1.0, 0.3, 4.0), float64(0.5, 2.0, 1.0)
    first, second = through(function, mean, deviation.square())
    for number in range(3):
        density = stats.norm(float(mean[number]), float(deviation[number]))

        def value(x, power, density=density):
            return float(function(torch.tensor(x, dtype=torch.float64))) ** power * density.pdf(x)

        ends = density.interval(1 - 1e-15)
        kinks = [k for k in (-3.0, 0.0, 3.0) if ends[0] < k < ends[1]]
        moments = [integrate.quad(value, *ends, args=(power,), points=kinks, limit=200)[0] for power in (1, 2)]
        # The trapezoid's error at a kink: (17 deviations / 4096)^2 / 12 times its change of slope, 3e-6.
        assert float(first[number]) == pytest.approx(moments[0], abs=5e-6)
        assert float(second[number]) == pytest.approx(moments[1] - moments[0] ** 2, rel=1e-4, abs=2e-5)


class Chain(nn.Module):
    """A batch norm whose statistics are those of its input, so that its output is normal; then layers that read it."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.first, self.norm, self.activation = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), activation
        self.second, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 3)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4)[:, :, None, None])
            self.norm.running_mean.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0]))
            self.norm.running_var.copy_(torch.tensor([0.3, 1.0, 4.0, 0.5]))
            self.norm.weight.copy_(torch.tensor([1.2, -0.7, 1.5, 0.4]))
            self.norm.bias.copy_(torch.tensor([0.1, 0.8, -0.5, 5.5]))
            self.second.weight += 0.2  # so that a mean of inputs is a mean of outputs

    def forward(self, x):
        y = self.second(self.activation(self.norm(self.first(x))))
        return self.head(y.mean((2, 3)))


def chain(activation: nn.Module) -> tuple[Graph, torch.Tensor]:
    """The captured chain, and inputs with exactly the statistics that its batch norm remembers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Chain(activation).eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2000, 4, 6, 6, generator=generator)
    images = images - images.mean((0, 2, 3), keepdim=True)
    images = images / images.std((0, 2, 3), keepdim=True, correction=0)
    wide = (1, 4, 1, 1)
    images = images * model.norm.running_var.sqrt().reshape(wide) + model.norm.running_mean.reshape(wide)
    return capture(model, (images[:2],)), images


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.Identity()])
def test_the_mean_of_a_layer_behind_a_batch_norm_is_that_of_drawn_samples(activation):
    graph, images = chain(activation)
    outcome = Pipeline.parse(ANALYTIC).run(graph, Context(data=[images]))
    folded, before = (
        Pipeline.parse(text).run(graph, Context(data=[images])).graph for text in ("fold-batch-norm", COARSE)
    )
    bias = {name: arguments(g.calls("conv2d")[1]).bias for name, g in (("before", before), ("after", outcome.graph))}
    found = before.weight(bias["before"]) - outcome.graph.weight(bias["after"])
    whole, coarse = folded.weight("second.weight"), rounded(before, "second.weight")
    read = activation(nn.functional.conv2d(images, folded.weight("first.weight"), folded.weight("first.bias")))
    with torch.no_grad():
        shift = nn.functional.conv2d(read.double(), (coarse - whole).double(), padding=1).mean((0, 2, 3))
    assert shift.abs().max() > 0.05
    # Means over 72,000 numbers of deviation about 1, times weights' changes of about 0.1, 36 of them: 3e-3 at worst.
    torch.testing.assert_close(found.double(), shift, rtol=0, atol=3e-3)
    assert [layer["layer"] for layer in outcome.steps[-1].result.details["layers"]] == ["second", "head"]
    whys = [skip.why for skip in outcome.steps[-1].result.skipped]
    assert whys == ["the mean of its input is not known: the model's input has no statistics"]


def rounded(graph: Graph, name: str) -> torch.Tensor:
    """The weight as its quantizer rounds it."""
    (quantizer,) = [q for q in graph.calls("fake_quantize_per_channel_affine") if q.args[0].target == name]
    call = arguments(quantizer)
    held = [graph.weight(n).detach() for n in (call.self, call.scale, call.zero_point)]
    return torch.fake_quantize_per_channel_affine(*held, call.axis, call.quant_min, call.quant_max)


def test_equalized_channels_have_their_statistics_over_the_factors():
    """Equalizing changes nothing in float: the mean input over its factors must foretell the shift of samples."""
    graph, images = chain(nn.ReLU())
    uneven = Pipeline.parse("fold-batch-norm, equalize").run(graph, Context(data=[images]))
    assert max(pair["factors"][1] for pair in uneven.steps[-1].result.details["pairs"]) > 1.05
    text = "fold-batch-norm, equalize, insert-fake-quant{weight-bits=3}, calibrate"
    before, outcome = (Pipeline.parse(t).run(graph, Context(data=[images])) for t in (text, ANALYTIC_EQUALIZED))
    coarse, whole = rounded(before.graph, "second.weight"), uneven.graph.weight("second.weight")
    first = uneven.graph.weight("first.weight"), uneven.graph.weight("first.bias")
    with torch.no_grad():
        read = torch.relu(nn.functional.conv2d(images, *first))
        shift = nn.functional.conv2d(read.double(), (coarse - whole).double(), padding=1).mean((0, 2, 3))
    found = before.graph.weight("second.bias") - outcome.graph.weight("second.bias")
    assert shift.abs().max() > 0.05
    torch.testing.assert_close(found.double(), shift, rtol=0, atol=3e-3)  # as above


def test_every_layer_behind_a_batch_norm_is_corrected_and_others_say_why_not():
    corrected = {}
    for name in ("resnet", "mobilenet", "efficientnet", "densenet", "vgg"):
        data = [torch.randn(4, *EXAMPLES[name][1], generator=torch.Generator().manual_seed(4))]
        result = Pipeline.parse(ANALYTIC).run(example_graph(name), Context(data=data)).steps[-1].result
        corrected[name] = result.changed, len(result.skipped)
        reasons = {skip.why.removeprefix("the mean of its input is not known: ") for skip in result.skipped[1:]}
        assert all(why.startswith("no batch norm tells the spread of 'm") for why in reasons)  # a mean, a maximum
    # The stem reads the images; in efficientnet both convs of each squeeze follow a mean; in vgg all follow a maximum.
    assert corrected == {
        "resnet": (10, 1), "mobilenet": (14, 1), "efficientnet": (14, 9), "densenet": (8, 1), "vgg": (0, 4)
    }  # fmt: skip


@pytest.mark.parametrize("change", ["weight", "bias"])
def test_a_layer_that_changed_since_is_not_trusted(change):
    graph, images = chain(nn.ReLU())
    folded = Pipeline.parse("fold-batch-norm").run(graph).graph
    with torch.no_grad():
        folded.weight(f"first.{change}")[0] += 0.3
    text = "insert-fake-quant{weight-bits=3}, calibrate, correct-bias{how=analytic}"
    result = Pipeline.parse(text).run(folded, Context(data=[images], original=graph)).steps[-1].result
    whose = {"weight": "its weights are", "bias": "its bias is"}[change]
    reason = f"of 'first.weight' {whose} not that of" if change == "bias" else f"of 'first.weight' {whose} not those of"
    assert reason in result.skipped[1].why
    # Untouched, the same folded graph is corrected with the statistics of the original.
    sound = Pipeline.parse("fold-batch-norm").run(graph).graph
    assert Pipeline.parse(text).run(sound, Context(data=[images], original=graph)).steps[-1].result.changed == 2


def test_without_batch_norms_there_is_nothing_to_tell_means_from():
    graph, images = chain(nn.ReLU())
    folded = Pipeline.parse("fold-batch-norm").run(graph).graph
    with pytest.raises(UsageError, match="no batch norm that tells the means of its values; set how=empirical"):
        Pipeline.parse("insert-fake-quant, calibrate, correct-bias{how=analytic}").run(folded, Context(data=[images]))


def test_a_batch_norm_that_is_not_folded_tells_too():
    graph, images = chain(nn.ReLU())
    text = "insert-fake-quant{weight-bits=3}, calibrate, correct-bias{how=analytic}"
    kept = Pipeline.parse(text).run(graph, Context(data=[images]))
    before = Pipeline.parse("insert-fake-quant{weight-bits=3}, calibrate").run(graph, Context(data=[images])).graph
    folded = Pipeline.parse(ANALYTIC).run(graph, Context(data=[images]))
    coarse = Pipeline.parse(COARSE).run(graph, Context(data=[images])).graph
    shifts = [a.weight("second.bias") - b.graph.weight("second.bias") for a, b in ((before, kept), (coarse, folded))]
    torch.testing.assert_close(*shifts, rtol=1e-4, atol=1e-6)  # the same statistics, in float64
