"""Calibration against float64 numpy, its refusals, and training through the result."""

import json

import numpy as np
import pytest
import torch
from example_graphs import example_graph, made_once
from models import EXAMPLES
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import UsageError, VerifyError
from planish.ir.graph import Graph
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.noise import signal_to_noise
from planish.passes.quantize.observers import OBSERVERS


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(4, 3, 8, 8, generator=generator) * (k + 1) for k in range(count)]


@made_once
def small() -> Graph:
    torch.manual_seed(1)
    return capture(Small().eval(), (torch.randn(2, 3, 8, 8),))


def calibrated(graph: Graph, data, text: str = "calibrate"):
    outcome = Pipeline.parse(f"insert-fake-quant, {text}").run(graph, Context(data=data))
    return outcome.graph, outcome.steps[1].result


def quantize(values: np.ndarray, scale, zero_point, low, high) -> np.ndarray:
    """The contract in float64."""
    levels = np.clip(np.rint(values / scale) + zero_point, low, high)
    return (levels - zero_point) * scale


def scale_of(low: float, high: float) -> float:
    """1/255 of the range, rounded up to 10 significant bits."""
    mantissa, exponent = np.frexp((max(high, 0) - min(low, 0)) / 255)
    return float(np.ldexp(np.ceil(mantissa * 1024) / 1024, exponent))


def test_min_max_scales_equal_numpy():
    graph, result = calibrated(small(), batches())
    x = torch.cat(batches())
    model = small()
    relu = torch.relu(torch.conv2d(x, model.weights["conv.weight"], model.weights["conv.bias"], padding=1)).detach()
    for name, values in (("x", x), ("relu", relu), ("mean", relu.mean((2, 3)))):
        entry = next(e for e in result.details["activations"] if e["layer"] == name)
        # The graph runs batch by batch, which may sum a convolution in another order.
        assert entry["low"] == pytest.approx(float(values.min()), rel=1e-6)
        assert entry["high"] == pytest.approx(float(values.max()), rel=1e-6)
        scale = scale_of(entry["low"], entry["high"])
        assert float(graph.weights[f"{name}.activation_scale"]) == scale
        zero_point = -128 + round(-min(float(values.min()), 0.0) / scale)
        assert int(graph.weights[f"{name}.activation_zero_point"]) == zero_point
    weight = model.weights["conv.weight"].detach().double().numpy()
    expected = (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32)
    np.testing.assert_array_equal(graph.weights["conv.weight_scale"].numpy(), expected)
    assert not graph.weights["conv.weight_zero_point"].any()
    assert result.changed == 5 and result.skipped == ()
    verify(graph)


def test_moving_average_takes_each_batch_with_its_momentum():
    graph, result = calibrated(small(), batches(), "calibrate{observer=moving-average, momentum=0.3}")
    low, high = (np.float64(end(batches()[0])) for end in (torch.min, torch.max))
    for batch in batches()[1:]:
        low, high = 0.7 * low + 0.3 * float(batch.min()), 0.7 * high + 0.3 * float(batch.max())
    entry = next(e for e in result.details["activations"] if e["layer"] == "x")
    assert (entry["low"], entry["high"]) == pytest.approx((low, high), rel=1e-12)  # float64 in another order
    assert float(graph.weights["x.activation_scale"]) == scale_of(low, high)


def test_percentile_drops_outliers():
    data = batches(1)[0]
    data[0, 0, 0, 0] = 1e4
    graph, result = calibrated(small(), [data], "calibrate{observer=percentile, percentile=99}")
    low, high = np.percentile(data.numpy(), [1, 99])
    # One bin is 1/4096 of the span, which the outlier made 2 * 16384 wide.
    assert float(graph.weights["x.activation_scale"]) * 255 == pytest.approx(
        high - low, abs=2 * 16384 / 4096, rel=2**-9
    )
    assert next(e for e in result.details["activations"] if e["layer"] == "x")["high"] < 10


def test_the_quantized_output_equals_the_float64_formula():
    """Every step in float64 numpy. Float32 may move a value over a rounding edge, so one step is allowed."""
    graph, _ = calibrated(small(), batches())
    held = {name: tensor.detach().double().numpy() for name, tensor in graph.weights.items()}

    def activation(name: str, values: np.ndarray) -> np.ndarray:
        scale, zero_point = held[f"{name}.activation_scale"], held[f"{name}.activation_zero_point"]
        return quantize(values, scale, zero_point, -128, 127)

    def weight(name: str) -> np.ndarray:
        shape = (-1, *[1] * (held[name].ndim - 1))
        return quantize(held[name], held[f"{name}_scale"].reshape(shape), 0, -127, 127)

    x = batches(1)[0][:2]
    padded = np.pad(activation("x", x.double().numpy()), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, weight("conv.weight")) + held["conv.bias"].reshape(1, -1, 1, 1)
    y = activation("mean", activation("relu", np.maximum(y, 0)).mean((2, 3)))
    expected = y @ weight("head.weight").T + held["head.bias"]
    step = held["mean.activation_scale"] * np.abs(weight("head.weight")).max()
    np.testing.assert_allclose(graph(x).detach().numpy(), expected, rtol=0, atol=1.01 * step)
    assert np.abs(expected - small()(x).detach().numpy()).max() > 1e-6  # quantization is there to be seen


def test_one_run_over_the_data_serves_all_observers():
    class Counted:
        runs = 0

        def __iter__(self):
            self.runs += 1
            return iter(batches())

    data = Counted()
    _, result = calibrated(small(), data)
    assert data.runs == 1
    assert result.details["batches"] == 3


def test_a_second_run_changes_nothing_and_two_runs_are_equal():
    ctx = Context(data=batches())
    for observer in OBSERVERS:
        text = f"calibrate{{observer={observer}}}"
        graph, first = calibrated(small(), batches(), text)
        outcome = Pipeline.parse(text).run(graph, ctx)
        assert outcome.steps[0].result.changed == 0
        assert outcome.steps[0].result.details == first.details
        for name, tensor in graph.weights.items():
            assert torch.equal(outcome.graph.weights[name], tensor)


def test_labels_in_the_loader_are_ignored():
    with_labels = [(batch, torch.zeros(4, dtype=torch.int64)) for batch in batches()]
    graph, _ = calibrated(small(), with_labels)
    plain, _ = calibrated(small(), batches())
    assert torch.equal(graph.weights["relu.activation_scale"], plain.weights["relu.activation_scale"])


def test_the_report_is_json_and_its_noise_is_that_of_the_outputs():
    graph, result = calibrated(small(), batches(1))
    details = json.loads(json.dumps(result.details, allow_nan=False))
    first = next(entry for entry in details["activations"] if entry["layer"] == "x")
    assert first["saturated"] == 0.0
    x = batches(1)[0]
    scale, zero_point = first["scale"], first["zero_point"]
    exact = x.double().numpy()
    noise = exact - quantize(exact, scale, zero_point, -128, 127)
    assert first["snr_db"] == pytest.approx(10 * np.log10((exact**2).sum() / (noise**2).sum()), abs=0.02)
    wanted, got = small()(x).detach().double(), graph(x).detach().double()
    expected = 10 * float(torch.log10(wanted.square().sum() / (wanted - got).square().sum()))
    assert details["output_snr_db"] == pytest.approx(expected, abs=0.02)  # decibels are rounded to 0.01


def test_noise_is_none_where_both_models_agree_exactly():
    graph, _ = calibrated(small(), batches(1))
    noise, output = signal_to_noise(graph, (torch.zeros(1, 3, 8, 8),))
    assert noise["x_quantized"].decibels is None
    assert output is not None and output > 20


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("fold", ["", "fold-batch-norm, "])
def test_usual_models_keep_their_answers(name, fold):
    extents = EXAMPLES[name][1]
    data = torch.randn(8, *extents)
    source = example_graph(name)
    outcome = Pipeline.parse(f"{fold}insert-fake-quant, calibrate").run(source, Context(data=data))
    # int8 with random weights: about 6 dB per bit, less what a dozen layers add up to.
    assert outcome.steps[-1].result.details["output_snr_db"] > 20
    x = torch.randn(3, *extents)
    wanted, got = source(x).detach(), outcome.graph(x).detach()
    assert float((wanted - got).square().sum() / wanted.square().sum()) < 0.02


def test_an_activation_that_is_always_zero_is_named():
    graph = small()
    with torch.no_grad():
        graph.weights["conv.bias"].fill_(-100.0)
    result_graph, result = calibrated(graph, batches(1))
    assert "it is zero in all the data; its scale is 1" in {skip.why for skip in result.skipped}
    assert float(result_graph.weights["relu.activation_scale"]) == 1.0
    assert torch.equal(result_graph(batches(1)[0]), graph(batches(1)[0]))


def test_dead_weight_channels_are_floored_and_named():
    graph = small()
    with torch.no_grad():
        graph.weights["conv.weight"][1:3] = 1e-20
    result_graph, result = calibrated(graph, batches(1))
    (skip,) = result.skipped
    assert skip.where == "weight 'conv.weight'"
    assert skip.why == "2 of 6 channels are nearly zero; their scale is raised to its floor"
    bias = graph.weights["conv.bias"].detach().double()
    scales = result_graph.weights["conv.weight_scale"].double() * float(result_graph.weights["x.activation_scale"])
    assert float((bias / scales).abs().max()) < 2**31


def test_the_mode_is_left_as_it_was():
    graph, _ = calibrated(example_graph("resnet"), torch.randn(4, 3, 16, 16))
    statistics = {name: t.clone() for name, t in graph.weights.items() if "running" in name}
    training = Pipeline.parse("calibrate").run(graph.train(), Context(data=torch.randn(4, 3, 16, 16))).graph
    assert training.module.training
    for name, tensor in statistics.items():
        assert torch.equal(training.weights[name], tensor)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "calibrate: no data was given; pass data=loader."),
        ([], "calibrate: the loader is empty; give at least one batch."),
        (
            [torch.randn(1, 3, 8, 8), torch.full((1, 3, 8, 8), float("nan"))],
            "batch 2: input 'x' holds NaN or infinity.",
        ),
        ([torch.randn(1, 3, 9, 8)], "calibrate, batch 1: input 'x' is f32[1,3,9,8]; expected x : f32[b,3,8,8]."),
        ([torch.randn(1, 3, 8, 8).double()], "input 'x' is f64[1,3,8,8]; expected x : f32[b,3,8,8]."),
        (
            [torch.full((1, 3, 8, 8), 3e38)],
            "calibrate, batch 1: the output of 'aten.relu.default' (test_calibrate.py:",
        ),
    ],
)
def test_bad_data(data, message):
    graph = small()
    with torch.no_grad():
        graph.weights["conv.weight"].abs_().mul_(10)
    with pytest.raises(UsageError) as error:
        calibrated(graph, data)
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_infinite_weights_are_named():
    graph = small()
    with torch.no_grad():
        graph.weights["head.weight"][0, 0] = float("inf")
    with pytest.raises(UsageError) as error:
        calibrated(graph, batches(1))
    assert str(error.value) == "calibrate: weight 'head.weight' holds NaN or infinity; load sound weights."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("calibrate", "calibrate: it needs 'fake-quant'; add 'insert-fake-quant' before it."),
        ("calibrate, insert-fake-quant", "calibrate: it needs 'fake-quant'; put 'insert-fake-quant' before it."),
        (
            "insert-fake-quant, calibrate, prune-channels{ratio=0.5}",
            "prune-channels: the graph has 'fake-quant' by then; put 'prune-channels' before 'insert-fake-quant'.",
        ),
        (
            "insert-fake-quant, calibrate{observer=min-mx}",
            "calibrate: unknown observer 'min-mx'; did you mean 'min-max'?",
        ),
        ("calibrate{percentile=40}", "calibrate: 'percentile' is 40; expected over 50 and up to 100."),
        ("calibrate{momentum=0}", "calibrate: 'momentum' is 0; expected over 0 and up to 1."),
    ],
)
def test_wrong_order_and_options(text, message):
    with pytest.raises(UsageError) as error:
        Pipeline.parse(text).run(small(), Context(data=batches()))
    assert str(error.value).removesuffix(".") == message.removesuffix(".")


@pytest.mark.parametrize("fault", [0.0, -1.0, float("inf")])
def test_the_verifier_finds_a_broken_scale(fault):
    graph, _ = calibrated(small(), batches(1))
    graph.weights["relu.activation_scale"].fill_(fault)
    with pytest.raises(VerifyError, match=r"scale 'relu\.activation_scale' holds"):
        verify(graph)


@pytest.mark.parametrize("fold", ["", "fold-batch-norm, "])
def test_quantization_aware_training_learns(fold):
    """Straight-through gradients reach every weight, and the loss falls."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(16, *EXAMPLES["resnet"][1], generator=generator)
    labels = torch.randint(0, 10, (16,), generator=generator)
    source = example_graph("resnet")
    graph = Pipeline.parse(f"{fold}insert-fake-quant, calibrate").run(source, Context(data=x)).graph
    optimizer = torch.optim.Adam(graph.parameters.values(), lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(graph(x), labels)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    for name, parameter in graph.parameters.items():
        assert parameter.grad is not None and bool(parameter.grad.any()), name
    assert losses[-1] < 0.9 * losses[0]
