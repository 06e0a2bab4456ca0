"""Input that calibration must survive or refuse, with the layer named: never a silent wrong answer."""

from functools import cache

import numpy as np
import pytest
import torch
from example_graphs import made_once
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.observers import OBSERVERS
from planish.passes.quantize.scales import SMALLEST_SCALE


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@made_once
def net() -> Graph:
    torch.manual_seed(8)
    return capture(Net().eval(), (torch.randn(2, 3, 6, 6),))


def batches(count: int = 3, size: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(size, 3, 6, 6, generator=generator) for _ in range(count)]


@cache
def quantized() -> Graph:
    return Pipeline.parse("insert-fake-quant").run(net()).graph


def calibrated(graph: Graph, data, options: str = ""):
    if "fake-quant" not in graph.properties:
        graph = Pipeline.parse("insert-fake-quant").run(graph).graph
    outcome = Pipeline.parse(f"calibrate{{{options}}}").run(graph, Context(data=data))
    verify(outcome.graph)
    return outcome.graph, outcome.steps[0].result


def entry(result, layer: str):
    return next(row for row in result.details["activations"] if row["layer"] == layer)


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("value", [3.0, -0.25])
def test_a_constant_activation_is_held_to_half_a_step(observer, scheme, value):
    x = torch.full((4, 3, 6, 6), value)
    _, result = calibrated(quantized(), [x], f"observer={observer}, scheme={scheme}")
    row = entry(result, "x")
    levels = np.clip(np.rint(value / row["scale"]) + row["zero_point"], -128, 127) - row["zero_point"]
    # One end of the range is the value itself, which the zero point's rounding moves by half a step at most.
    assert abs(levels * row["scale"] - value) <= 0.51 * row["scale"]
    assert row["scale"] <= abs(value) / 127 * 1.01
    assert row["saturated"] == 0.0


@pytest.mark.parametrize("observer", ["min-max", "entropy"])
def test_an_activation_without_elements_is_named_and_the_rest_calibrated(observer):
    class Empty(Net):
        def forward(self, x):
            return self.head(torch.relu(self.conv(x)).mean((2, 3))), self.head(x[:, :0, 0, 0].reshape(0, 4))

    graph = capture(Empty().eval(), (torch.randn(2, 3, 6, 6),))
    result_graph, result = calibrated(graph, batches(1), f"observer={observer}")
    assert entry(result, "x")["scale"] < 1
    outputs = result_graph(batches(1)[0])
    assert outputs[1].shape == (0, 2) and torch.isfinite(outputs[0]).all()


def test_a_quantizer_that_sees_no_values_says_so():
    class Slices(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.tail = nn.Linear(4, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.tail(torch.sigmoid(self.head(x[:0]))), self.head(x)

    graph = capture(Slices().eval(), (torch.randn(2, 4),))
    result_graph, result = calibrated(graph, [torch.randn(3, 4)])
    assert "it has no elements in all the data; its scale is 1" in {skip.why for skip in result.skipped}
    assert result_graph(torch.randn(3, 4))[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("observer", "bad"), list(zip(OBSERVERS, [float("inf"), -float("inf"), float("nan")] * 2, strict=True))
)
def test_a_value_that_is_not_finite_names_its_layer(observer, bad):
    class Breaks(Net):
        def forward(self, x):
            y = torch.relu(self.conv(x))
            return self.head(torch.where(y > 1e30, bad, y).mean((2, 3)))

    graph = capture(Breaks().eval(), (torch.randn(2, 3, 6, 6),))
    data = [*batches(1), torch.full((4, 3, 6, 6), 1e35)]
    with torch.no_grad():
        graph.weights["conv.weight"].abs_()
    with pytest.raises(UsageError) as error:
        calibrated(graph, data, f"observer={observer}")
    expected = "calibrate, batch 2: the output of 'aten.mean.dim' (test_bad_input.py:"
    assert str(error.value).startswith(expected)
    assert str(error.value).endswith("'mean', holds NaN or infinity; check the data's range and the weights.")


@pytest.mark.parametrize("weight_observer", ["min-max", "mean-squared-error"])
def test_a_channel_of_zeros_gets_a_usable_scale_and_is_named(weight_observer):
    graph = net()
    with torch.no_grad():
        graph.weights["conv.weight"][2] = 0.0
    result_graph, result = calibrated(graph, batches(), f"weight-observer={weight_observer}")
    (skip,) = result.skipped
    assert (skip.where, skip.why) == (
        "weight 'conv.weight'",
        "1 of 4 channels are nearly zero; their scale is raised to its floor",
    )
    scale = result_graph.weights["conv.weight_scale"]
    assert bool((torch.isfinite(1 / scale) & (scale > 0)).all())
    bias = float(graph.weights["conv.bias"].detach()[2]) / (float(scale[2]) * entry(result, "x")["scale"])
    assert abs(bias) <= 2**30 * 1.001  # half of int32; float32 rounds the scale
    assert torch.isfinite(result_graph(batches(1)[0])).all()


@pytest.mark.parametrize(("observer", "scheme"), [*((name, "affine") for name in OBSERVERS), ("min-max", "symmetric")])
def test_a_scale_that_would_underflow_is_raised_and_the_layer_named(observer, scheme):
    tiny = [batch * 1e-30 for batch in batches()]
    graph, result = calibrated(quantized(), tiny, f"observer={observer}, scheme={scheme}")
    assert entry(result, "x")["scale"] == SMALLEST_SCALE == 2.0**-60
    (skip,) = [skip for skip in result.skipped if "raised to the least one" in skip.why]
    assert "'x'" in skip.where or "(x)" in skip.where
    assert torch.isfinite(graph(tiny[0])).all()


def test_values_near_float32s_end_do_not_overflow_a_scale():
    graph = net()
    with torch.no_grad():
        graph.weights["conv.weight"].mul_(1e-30)
    _, result = calibrated(graph, [torch.full((4, 3, 6, 6), 3e38), torch.full((4, 3, 6, 6), -3e38)])
    row = entry(result, "x")
    assert np.isfinite(np.float32(row["scale"])) and row["scale"] * 255 >= 6e38


@pytest.mark.parametrize(
    ("options", "used"),
    [("samples=9", (9, 3)), ("samples=8", (8, 2)), ("samples=1", (1, 1)), ("samples=12", (12, 3)), ("", (12, 3))],
)
def test_samples_ends_the_run_and_cuts_the_last_batch(options, used):
    read = []

    class Loader:
        def __iter__(self):
            for batch in batches():
                read.append(batch)
                yield batch

    _, result = calibrated(quantized(), Loader(), options)
    assert (result.details["samples"], result.details["batches"]) == used
    assert len(read) == used[1]
    whole = torch.cat(batches())[: used[0]]
    assert (entry(result, "x")["low"], entry(result, "x")["high"]) == (float(whole.min()), float(whole.max()))


def test_a_loader_shorter_than_asked_is_an_error():
    with pytest.raises(UsageError) as error:
        calibrated(quantized(), batches(), "samples=100")
    expected = "the loader has 12 samples, 'samples' asks for 100; give more data or lower 'samples'."
    assert str(error.value) == f"calibrate: {expected}"


def test_saturation_is_the_share_beyond_the_levels_and_the_worst_layer_comes_first():
    data = batches(1)[0]
    data[0, 0, 0, 0] = 40.0
    graph, result = calibrated(quantized(), [data], "observer=percentile, percentile=90")
    row = entry(result, "x")
    exact = data.double().numpy()
    q = np.rint(exact / row["scale"]) + row["zero_point"]
    assert row["saturated"] == np.mean((q < -128) | (q > 127)) > 0.1
    decibels = [each["snr_db"] for each in result.details["activations"]]
    assert decibels == sorted(decibels)
    assert graph(data).shape == (4, 2)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_symmetric_activations_have_their_zero_in_the_middle(observer):
    for activations, middle in (("int8", 0), ("uint8", 128), ("int16", 0)):
        text = f"insert-fake-quant{{activations={activations}}}, calibrate{{observer={observer}, scheme=symmetric}}"
        outcome = Pipeline.parse(text).run(net(), Context(data=batches()))
        rows = outcome.steps[1].result.details["activations"]
        assert {row["zero_point"] for row in rows} == {middle}
        assert outcome.steps[1].result.details["output_snr_db"] > 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("samples=0", "calibrate: 'samples' is 0; expected 1 or more."),
        ("scheme=symetric", "calibrate: unknown scheme 'symetric'; did you mean 'symmetric'?"),
        ("observer=mean-square-error", "calibrate: unknown observer 'mean-square-error'; did you mean"),
        (
            "weight-observer=entropy",
            "calibrate: unknown weight-observer 'entropy'; known: min-max, ",
        ),
        ("data=loaders", "calibrate: unknown data 'loaders'; did you mean 'loader'?"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError) as error:
        calibrated(quantized(), batches(1), options)
    assert message.rstrip(".") in str(error.value)
