"""Where quantizers go and where they do not, with the reason."""

import numpy as np
import pytest
import torch
from example_graphs import example_graph
from models import EXAMPLES
from torch import nn
from torch.nn import functional

from planish.backends.target import Target
from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.ops import op_name
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.insert_fake_quant import InsertFakeQuant
from planish.passes.quantize.rules import WEIGHT_AXIS


class Net(nn.Module):
    """A model whose forward is the function given, with a few layers to call."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def graph_of(function) -> Graph:
    return capture(Net(function), (torch.randn(2, 4, 8, 8),))


def insert(graph: Graph, ctx: Context | None = None, **options):
    outcome = Pipeline([InsertFakeQuant(**options)]).run(graph, ctx)
    return outcome.graph, outcome.steps[0].result


def quantized(graph: Graph) -> list[str]:
    """The values that have a quantizer, by node name."""
    return [node.args[0].name for node in graph.calls("fake_quantize_per_tensor_affine")]


# What stands between two convs, and the values that get a quantizer (x always does).
PLACES = {
    "conv": (lambda m, y: y, ["conv2d"]),
    "behind relu": (lambda m, y: torch.relu(y), ["relu"]),
    "behind relu6": (lambda m, y: functional.relu6(y), ["relu6"]),
    "behind hardtanh": (lambda m, y: functional.hardtanh(y, 0, 6), ["hardtanh"]),
    "behind clamp": (lambda m, y: y.clamp(-1, 1), ["clamp"]),
    "behind batch norm": (lambda m, y: m.norm(y), ["batch_norm"]),
    "behind batch norm and relu": (lambda m, y: torch.relu(m.norm(y)), ["relu"]),
    "not again behind max_pool": (lambda m, y: functional.max_pool2d(torch.relu(y), 2), ["relu"]),
    "not again behind view and permute": (lambda m, y: y.flatten(1).view(-1, 4, 8, 8).permute(0, 1, 3, 2), ["conv2d"]),
    "not again behind dropout": (lambda m, y: functional.dropout(torch.relu(y), 0.5, m.training), ["relu"]),
    "not again behind zero padding": (lambda m, y: functional.pad(y, (1, 0)), ["conv2d"]),
    "around add": (lambda m, y: torch.relu(y + m.other(y)), ["conv2d", "conv2d_1", "relu"]),
    "around a table": (lambda m, y: functional.silu(y), ["conv2d", "silu"]),
    "behind a mean": (lambda m, y: y.mean((2, 3), keepdim=True), ["conv2d", "mean"]),
    "around avg_pool": (lambda m, y: functional.avg_pool2d(torch.relu(y), 2), ["relu", "avg_pool2d"]),
    "relu that is not the only reader": (lambda m, y: torch.relu(y) + y, ["conv2d", "relu", "add"]),
    "not around a float op": (lambda m, y: torch.relu(functional.group_norm(y, 2)), ["relu"]),
    "behind split": (lambda m, y: torch.cat(torch.relu(y).chunk(2, 1)[::-1], 1), ["relu"]),
}


@pytest.mark.parametrize("case", PLACES)
def test_places(case):
    between, expected = PLACES[case]
    graph, _ = insert(graph_of(lambda m, x: m.other(between(m, m.conv(x)))))
    places = [name for name in quantized(graph) if name != "x"]
    assert places == expected


def test_weights_are_per_channel_symmetric_and_activations_per_tensor():
    graph, result = insert(capture(Transposed(), (torch.randn(1, 4, 8),)))
    calls = {str(graph.weight(n.args[0]).shape): n for n in graph.calls("fake_quantize_per_channel_affine")}
    assert {shape: n.args[3:] for shape, n in calls.items()} == {
        "torch.Size([6, 4, 3])": (0, -127, 127),
        "torch.Size([6, 2, 3])": (1, -127, 127),
    }
    assert graph.weights["up.weight_scale"].shape == (2,)
    assert graph.weights["conv.weight_scale"].shape == (6,)
    assert {n.args[3:] for n in graph.calls("fake_quantize_per_tensor_affine")} == {(-128, 127)}
    assert result.changed == 4 and result.details["quantized_products"] == 2


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3)
        self.up = nn.ConvTranspose1d(6, 4, 3, groups=2)

    def forward(self, x):
        return self.up(self.conv(x))


def test_inputs_of_a_concat_share_one_scale_through_pass_through_ops():
    def forward(m, x):
        a = torch.relu(m.conv(x))
        return m.head(torch.cat([functional.max_pool2d(a, 3, 1, 1)[:, :2], m.other(a)[:, 2:]], 1).permute(0, 2, 3, 1))

    graph, result = insert(graph_of(forward))
    scales = {n.args[0].name: n.args[1].target for n in graph.calls("fake_quantize_per_tensor_affine")}
    assert scales["relu"] == scales["conv2d_1"] == "relu.activation_scale"
    assert scales["x"] == "x.activation_scale"
    assert result.details["shared_scales"] == [["relu", "conv2d_1"]]


def test_outputs_stay_float_even_where_the_value_is_read_inside():
    def forward(m, x):
        y = torch.relu(m.conv(x))
        return y, m.other(y)

    graph, _ = insert(graph_of(forward))
    assert [spec.name for spec in graph.outputs] == ["relu", "conv2d_1"]
    assert {user.name for user in graph.node("relu").users} == {"relu_quantized", "output"}


def test_float_readers_of_a_float_value_keep_it():
    graph, _ = insert(graph_of(lambda m, x: m.conv(x) * torch.erf(x)))
    assert {user.name for user in graph.node("x").users} == {"x_quantized", "erf"}


# One case per line of `skips:` in the pass.
SKIPS = {
    "kept": (
        lambda m, x: m.other(m.conv(x)), {"keep": ("other",)}, "conv2d",
        "'keep' lists 'other'; it stays in float",
    ),
    "computed weight": (
        lambda m, x: functional.conv2d(m.conv(x), m.other.weight * 2), {}, "conv2d",
        "its weight is computed, not stored; it stays in float",
    ),
    "constant operand": (
        lambda m, x: m.other(m.conv(x) * m.gain), {}, "mul",
        "it reads a constant as an activation; it stays in float between integer ops",
    ),
    "not float32": (
        lambda m, x: m.other(m.conv(x) * (x > 0)), {}, "mul",
        "it reads values that are not float32; it stays in float between integer ops",
    ),
    "padding": (
        lambda m, x: m.other(functional.pad(m.conv(x), (1, 1), value=2.0)), {}, "pad",
        "it pads with 2, only zero is exact in integers; it stays in float between integer ops",
    ),
    "no integer form": (
        lambda m, x: m.other(torch.cumsum(m.conv(x), 1)), {}, "cumsum",
        "it has no integer form; it stays in float between integer ops",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SKIPS)
def test_skips_say_why(case):
    function, options, op, why = SKIPS[case]
    _, result = insert(graph_of(function), **options)
    assert [skip.why for skip in result.skipped] == [why]
    assert f"aten.{op}." in result.skipped[0].where
    assert "test_insert_fake_quant.py:" in result.skipped[0].where


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_product_of_the_usual_models_is_quantized_once(name):
    graph, result = insert(example_graph(name))
    assert result.details["quantized_products"] == len(graph.calls(*WEIGHT_AXIS)) == result.details["weights"]
    assert result.skipped == ()
    names = quantized(graph)
    assert len(set(names)) == len(names)
    assert not any(
        op_name(n.args[0]).startswith("fake_quantize") for n in graph.calls("fake_quantize_per_tensor_affine")
    )
    again, second = insert(graph)
    assert second.changed == 0
    assert str(again) == str(graph)


def test_running_before_calibration_yields_nan_and_nothing_else():
    graph, _ = insert(graph_of(lambda m, x: m.other(torch.relu(m.conv(x)))))
    assert bool(torch.isnan(graph(torch.randn(2, 4, 8, 8))).all())
    assert graph.properties == {"fake-quant"}


def test_fuel_stops_and_a_second_run_goes_on_to_the_same_graph():
    source = graph_of(lambda m, x: m.other(torch.cat([torch.relu(m.conv(x))[:, :2], x[:, 2:]], 1)))
    whole, result = insert(source)
    part, first = insert(source, Context(fuel=Fuel(2)))
    rest, second = insert(part)
    assert first.changed == 2 and first.changed + second.changed == result.changed
    assert str(rest) == str(whole)


def test_a_value_named_like_a_weight_still_gets_its_buffers():
    class Clash(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.Parameter(torch.ones(4))
            self.head = nn.Linear(4, 4)

        def forward(self, x):
            return self.head(torch.relu(self.head(x))) + self.relu

    graph, _ = insert(capture(Clash(), (torch.randn(2, 4),)))
    assert "relu" in graph.weights
    assert sum(name.endswith("activation_scale") for name in graph.weights) == 2


@pytest.mark.parametrize(
    ("options", "target", "expected"),
    [
        ({"activations": "uint8"}, None, (0, 255)),
        ({"activations": "int8", "activation_bits": 4}, None, (-8, 7)),
        ({"activations": "target"}, "x86-64-v3", (0, 255)),
        ({"activations": "target"}, "raspberry-pi-4", (-128, 127)),
        ({"activations": "target"}, "cuda-sm80", (-128, 127)),
    ],
)
def test_activation_levels(options, target, expected):
    ctx = Context(target=Target.get(target) if target else None)
    graph, _ = insert(graph_of(lambda m, x: m.conv(x)), ctx, **options)
    assert {n.args[3:] for n in graph.calls("fake_quantize_per_tensor_affine")} == {expected}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"activations": "int4"},
            "insert-fake-quant: 'activations' is 'int4'; expected int8, uint8, int16, target or none.",
        ),
        ({"weight_bits": 16}, "insert-fake-quant: 'weight-bits' is 16; expected 2 to 8."),
        ({"activation_bits": 1}, "insert-fake-quant: 'activation-bits' is 1; expected 2 to 8."),
        (
            {"keep": ("conv", "clasifier.*")},
            "insert-fake-quant: 'clasifier.*' in 'keep' matches no layer, op or class; expected a weight or layer "
            "('head.*'), an op ('conv2d') or a module's class ('Linear').",
        ),
        (
            {"activations": "target"},
            "insert-fake-quant: 'activations' is 'target' and no target was given; pass target=....",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError) as error:
        insert(graph_of(lambda m, x: m.conv(x)), **options)
    assert str(error.value) == message


def test_options_round_trip_as_text():
    text = "insert-fake-quant{keep=[conv1, head.*], activations=uint8}, calibrate{observer=percentile, percentile=99.9}"
    assert str(Pipeline.parse(text)) == text


def test_a_quantized_graph_saves_loads_and_exports_with_its_dynamic_batch(tmp_path):
    source = graph_of(lambda m, x: m.other(torch.relu(m.conv(x))))
    graph = Pipeline.parse("insert-fake-quant, calibrate").run(source, Context(data=torch.randn(4, 4, 8, 8))).graph
    graph.save(tmp_path / "model.planish")
    loaded = Graph.load(tmp_path / "model.planish")
    program = graph.exported_program().module()
    for batch in (1, 3):
        x = torch.randn(batch, 4, 8, 8)
        assert torch.equal(loaded(x), graph(x))
        assert torch.equal(program(x), graph(x))


def test_fake_quant_equals_the_float64_formula():
    """q = clamp(rint(x / scale) + zero_point); exact where scale is a power of two, so that no division rounds."""
    x = torch.arange(-40, 40).view(1, 1, 8, 10) / 16
    for scale, zero_point in ((0.125, 3), (0.25, -128), (0.5, 0)):
        got = torch.fake_quantize_per_tensor_affine(x, torch.tensor(scale), torch.tensor(zero_point), -128, 127)
        q = np.clip(np.rint(x.double().numpy() / scale) + zero_point, -128, 127)
        np.testing.assert_array_equal(got.numpy(), (q - zero_point) * scale)
