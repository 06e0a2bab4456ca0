"""Calibration without data: images whose features follow batch-norm statistics, and the warning that goes with them."""

import numpy as np
import pytest
import torch
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context, no_progress
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.synthesis import synthesise


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


def real(count: int) -> torch.Tensor:
    """Smooth images of mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.randn(count, 3, 3, 3, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(12, 12), mode="bilinear")
    return (smooth - smooth.mean()) / smooth.std()


def trained() -> Graph:
    """A model whose batch norms have seen those images."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Net().train()
        for norm in (model.first[1], model.second[1]):
            norm.momentum = None  # a plain average over all batches
    for k in range(8):
        model(real(16 + k))
    return capture(model.eval(), (torch.randn(2, 3, 12, 12),))


def distances(graph: Graph, images: torch.Tensor) -> float:
    """ZeroQ's loss in float64, with torch's own layers."""
    values = images.double()
    total = float(values.mean((0, 2, 3)).square().mean() + (values.std((0, 2, 3)) - 1).square().mean())
    for block in ("first", "second"):
        held = {name: graph.weights[f"{block}.{name}"].detach().double() for name in ("0.weight", "1.weight", "1.bias")}
        mean, variance = (graph.weights[f"{block}.1.running_{name}"].double() for name in ("mean", "var"))
        values = nn.functional.conv2d(values, held["0.weight"])
        deviation = (values.var((0, 2, 3)) + 1e-5).sqrt()
        total += float((values.mean((0, 2, 3)) - mean).square().mean())
        total += float((deviation - (variance + 1e-5).sqrt()).square().mean())
        values = nn.functional.batch_norm(values, mean, variance, held["1.weight"], held["1.bias"]).relu()
    return total


def test_images_come_to_the_statistics_and_noise_is_far_from_them():
    graph = trained()
    noise = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    images = synthesise(graph, 16, 60, 0, "calibrate", no_progress)
    assert distances(graph, images) < 0.05 * distances(graph, noise)
    assert not images.requires_grad
    assert torch.equal(images, synthesise(graph, 16, 60, 0, "calibrate", no_progress))
    assert not torch.equal(images, synthesise(graph, 16, 60, 1, "calibrate", no_progress))
    assert all(parameter.grad is None for parameter in graph.parameters.values())


@pytest.mark.parametrize("fold", ["", "fold-batch-norm, "])
def test_a_model_calibrated_without_data_works_on_real_data_and_says_so(fold):
    text = f"{fold}insert-fake-quant, calibrate{{data=synthesised, samples=16, iterations=60}}"
    source = trained()
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    outcome = Pipeline.parse(text).run(source, Context())
    assert torch.equal(torch.random.get_rng_state(), state)
    result = outcome.steps[-1].result
    assert result.details["data"] == "synthesised" and result.details["samples"] == 16
    assert result.skipped[0].why.startswith("no data was used: activations were observed on images synthesised from")
    x = real(40)
    wanted, got = source(x).detach(), outcome.graph(x).detach()
    ratio = 10 * np.log10(float(wanted.square().sum() / (wanted - got).square().sum()))
    # Statistics say nothing of how images differ from each other: real ones saturate what is made of whole images.
    # Real data give 24 dB here; quantizers that were off by a factor of two would give 6.
    assert ratio > 10
    for name, tensor in Pipeline.parse(text).run(source, Context()).graph.weights.items():
        assert torch.equal(tensor, outcome.graph.weights[name])


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), "the model has no batch norm whose statistics data could"),
        (
            nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2)),
            torch.zeros(2, 2, dtype=torch.int64),
            "data cannot be synthesised for inputs input_1 : i64[b,2]; expected one f32 tensor with a symbolic batch",
        ),
    ],
)
def test_models_that_no_data_can_be_synthesised_for(model, example, message):
    graph = capture(model.eval(), (example,))
    with pytest.raises(UsageError) as error:
        Pipeline.parse("insert-fake-quant, calibrate{data=synthesised}").run(graph, Context())
    assert f"calibrate: {message}" in str(error.value)
    assert "pass data=loader" in str(error.value)
