"""What stays in float at the user's word, and the other things that can be quantized: fewer, larger and no integers."""

import numpy as np
import pytest
import torch
from example_graphs import made_once
from torch import nn
from torch.nn import functional

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.ops import arguments, op_name
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.insert_fake_quant import InsertFakeQuant
from planish.passes.quantize.rules import WEIGHT_AXIS, stored_weight, weight_quantizer


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        return torch.relu(x + self.second(torch.sigmoid(self.first(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = Block()
        self.head = nn.Linear(8, 4)
        self.twin = nn.Linear(8, 2)

    def forward(self, x):
        y = self.block(torch.relu(self.stem(x))).mean((2, 3))
        return self.head(y), self.twin(y)


ALL = {"stem", "block.first", "block.second", "head", "twin"}


@made_once
def net() -> Graph:
    torch.manual_seed(4)
    return capture(Net().eval(), (torch.randn(2, 3, 8, 8),))


def data(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(9))


def layers(graph: Graph) -> set[str]:
    """The layers with a quantized weight."""
    products = [n for n in graph.calls(*WEIGHT_AXIS) if weight_quantizer(n) is not None]
    return {stored_weight(n).target.removesuffix(".weight") for n in products}


def insert(graph: Graph | None = None, **options):
    outcome = Pipeline([InsertFakeQuant(**options)]).run(graph or net())
    return outcome.graph, outcome.steps[0].result


@pytest.mark.parametrize(
    ("options", "floats"),
    [
        ({"keep": ("head",)}, {"head"}),
        ({"keep": ("block.*.weight",)}, {"block.first", "block.second"}),
        ({"keep": ("block",)}, {"block.first", "block.second"}),
        ({"keep": ("linear",)}, {"head", "twin"}),
        ({"keep": ("conv*",)}, {"stem", "block.first", "block.second"}),
        ({"keep": ("Block", "twin.weight")}, {"block.first", "block.second", "twin"}),
        ({"only": ("Linear",)}, {"stem", "block.first", "block.second"}),
        ({"only": ("block", "Linear"), "keep": ("stem",)}, {"stem"}),
        ({"first": "float"}, {"stem"}),
        ({"last": "float"}, {"head", "twin"}),
        ({"first": "float", "last": "float", "keep": ("block.first",)}, {"stem", "head", "twin", "block.first"}),
    ],
)
def test_selectors_name_layers_ops_and_classes(options, floats):
    graph, result = insert(**options)
    assert layers(graph) == ALL - floats
    assert result.details["quantized_products"] == len(ALL - floats)
    reasons = [skip.why for skip in result.skipped if "aten.conv2d" in skip.where or "aten.linear" in skip.where]
    assert len(reasons) == len(floats)
    verify(graph)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"keep": ("head",)}, "'keep' lists 'head'; it stays in float"),
        ({"only": ("conv2d",)}, "it is not in 'only'; it stays in float"),
        ({"first": "float"}, "it is a first layer; it stays in float"),
        ({"last": "float"}, "it is a last layer; it stays in float"),
        ({"keep": ("add",)}, "'keep' lists 'add'; it stays in float"),
    ],
)
def test_reasons(options, why):
    _, result = insert(**options)
    assert why in {skip.why for skip in result.skipped}


def test_a_kept_op_reads_and_gives_floats():
    graph, _ = insert(keep=("sigmoid",))
    (sigmoid,) = graph.calls("sigmoid")
    assert op_name(sigmoid.args[0]) == "conv2d"
    assert {op_name(user) for user in sigmoid.users} == {"fake_quantize_per_tensor_affine"}  # the next conv reads that


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ("sigmod",)}, "'sigmod' in 'keep' matches no layer, op or class; did you mean 'sigmoid'?"),
        (
            {"only": ("blok.first",)},
            "'blok.first' in 'only' matches no layer, op or class; did you mean 'block.first'?",
        ),
        ({"only": ("add",)}, "'add' in 'only' matches no layer, op or class; "),
        ({"only": ("Linear",), "keep": ("twin",)}, "'Linear' in 'only' and 'twin' in 'keep' both name 'twin.weight'"),
        ({"first": "int4"}, "'first' is 'int4'; expected same, int8 or float"),
        ({"weights": "float8"}, "'weights' is 'float8'; expected integer, float16 or bfloat16"),
        ({"weight_group": 4}, "integer products have integer weights with one scale per channel; set activations=none"),
        ({"weights": "float16"}, "integer products have integer weights with one scale per channel"),
        ({"weight_group": 0, "activations": None}, "'weight-group' is 0; expected 1 or more"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError) as error:
        insert(**options)
    assert message in str(error.value)


def test_ends_keep_8_bits_where_the_others_have_4():
    graph, _ = insert(weight_bits=4, first="int8", last="int8")
    highest = {
        stored_weight(n).target: arguments(weight_quantizer(n)).quant_max for n in graph.calls("conv2d", "linear")
    }
    ends = {"stem.weight": 127, "head.weight": 127, "twin.weight": 127}
    assert highest == {**ends, "block.first.weight": 7, "block.second.weight": 7}


def test_layers_can_be_quantized_one_run_after_the_other():
    mixed = Pipeline.parse("insert-fake-quant{only=[Linear], weight-bits=4}, insert-fake-quant").run(net()).graph
    bits = {stored_weight(n).target: arguments(weight_quantizer(n)).quant_max for n in mixed.calls("conv2d", "linear")}
    assert bits["head.weight"] == bits["twin.weight"] == 7 and bits["stem.weight"] == 127
    whole, _ = insert()
    assert len(mixed.calls("fake_quantize_per_tensor_affine")) == len(whole.calls("fake_quantize_per_tensor_affine"))


def test_16_bit_activations_equal_the_float64_formula():
    text = "insert-fake-quant{activations=int16}, calibrate"
    outcome = Pipeline.parse(text).run(net(), Context(data=data()))
    graph = outcome.graph
    assert {n.args[3:] for n in graph.calls("fake_quantize_per_tensor_affine")} == {(-32768, 32767)}
    eight = Pipeline.parse("insert-fake-quant, calibrate").run(net(), Context(data=data()))
    decibels = [each.steps[1].result.details["activations"][-1]["snr_db"] for each in (outcome, eight)]
    assert (
        decibels[0] > decibels[1] + 30
    )  # the input itself: 6 dB per bit, 48 for 8 bits, one of which a scale may cost
    x = data()
    scale, zero_point = (float(graph.weights[f"x.activation_{name}"]) for name in ("scale", "zero_point"))
    got = torch.fake_quantize_per_tensor_affine(x, scale, int(zero_point), -32768, 32767)
    q = np.clip(np.rint((x / np.float32(scale)).numpy()) + zero_point, -32768, 32767)
    np.testing.assert_array_equal(got.numpy(), ((q - zero_point) * scale).astype(np.float32))  # exact: scale is short


def test_weights_alone_need_no_data():
    text = "insert-fake-quant{activations=none, weight-bits=4}, calibrate{data=none}"
    outcome = Pipeline.parse(text).run(net())
    graph, details = outcome.graph, outcome.steps[1].result.details
    assert not graph.calls("fake_quantize_per_tensor_affine")
    assert layers(graph) == ALL and details["activations"] == [] and len(details["weights"]) == 5
    weight = graph.weights["head.weight"].detach().double().numpy()
    scale = (np.abs(weight).max(1, keepdims=True) / 7).astype(np.float32).astype(np.float64)
    rounded = np.clip(np.rint(weight / scale), -7, 7) * scale
    product = next(n for n in graph.calls("linear") if stored_weight(n).target == "head.weight")
    got = _value(graph, arguments(product).weight).double().numpy()
    np.testing.assert_allclose(got, rounded, rtol=1e-6)  # float32 multiplies the level by its scale


def _value(graph: Graph, node) -> torch.Tensor:
    """What a computation on weights alone yields."""
    if node.op == "get_attr":
        return graph.weight(node).detach()
    args = [_value(graph, a) if hasattr(a, "op") else a for a in node.args]
    return node.target(*args)


@pytest.mark.parametrize("observer", ["min-max", "mean-squared-error"])
def test_groups_of_a_linear_layers_inputs_have_their_own_scales(observer):
    insertion = "insert-fake-quant{activations=none, weight-bits=4, weight-group=4}"
    text = f"{insertion}, calibrate{{data=none, weight-observer={observer}}}"
    source = net()
    with torch.no_grad():
        source.weights["head.weight"][:, :4] *= 0.01
    graph = Pipeline.parse(text).run(source).graph
    verify(graph)
    assert layers(graph) == ALL
    assert graph.weights["head.weight_scale"].shape == (4 * 8 // 4,)
    assert graph.weights["stem.weight_scale"].shape == (8,)
    product = next(n for n in graph.calls("linear") if stored_weight(n).target == "head.weight")
    weight = source.weights["head.weight"].detach().reshape(8, 4).double().numpy()
    scale = graph.weights["head.weight_scale"].double().numpy()[:, None]
    if observer == "min-max":
        np.testing.assert_allclose(scale[:, 0], np.abs(weight).max(1) / 7, rtol=1e-6)  # rounded to float32
    else:
        assert np.all(scale[:, 0] <= np.abs(weight).max(1) / 7 * (1 + 1e-6))
    expected = np.clip(np.rint(weight / scale), -7, 7) * scale
    got = _value(graph, arguments(product).weight).reshape(8, 4).double().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    again = Pipeline.parse(insertion).run(graph)
    assert again.steps[0].result.changed == 0
    x = data()
    assert torch.isfinite(graph(x)[0]).all()


def test_calibrating_without_data_refuses_quantized_activations():
    with pytest.raises(UsageError) as error:
        Pipeline.parse("insert-fake-quant, calibrate{data=none}").run(net())
    expected = "'data' is none, but 7 scales of activations are to be set; give data, or set activations=none"
    assert str(error.value) == f"calibrate: {expected} in insert-fake-quant."


def test_rows_that_groups_do_not_divide_have_a_scale_per_channel():
    graph, result = insert(activations=None, weight_group=3)
    assert "groups of 3 do not divide its 8 inputs; it has a scale per channel" in {s.why for s in result.skipped}
    assert graph.weights["head.weight_scale"].shape == (4,)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_small_floats_round_weights_and_let_gradients_through(kind):
    graph, result = insert(activations=None, weights=kind)
    assert result.changed == 5 and result.details["quantized_products"] == 5
    verify(graph)
    x = data()
    model = net()
    twin = model.copy()
    with torch.no_grad():
        for name in ALL:
            weight = twin.weights[f"{name}.weight"]
            weight.copy_(weight.to(getattr(torch, kind)).float())
    wanted = twin(x)
    for got, expected in zip(graph(x), wanted, strict=True):
        assert torch.equal(got, expected)
    assert not torch.equal(model(x)[0], wanted[0])
    graph(x)[0].sum().backward()
    assert all(graph.parameters[f"{name}.weight"].grad.any() for name in ALL - {"twin"})
    assert insert(graph, activations=None, weights=kind)[1].changed == 0


def test_a_weight_that_float16_does_not_reach_is_an_error():
    graph = net()
    with torch.no_grad():
        graph.weights["head.weight"][0, 0] = 1e5
    with pytest.raises(UsageError) as error:
        insert(graph, activations=None, weights="float16")
    expected = "weight 'head.weight' holds 100000, float16 ends at 65504; take bfloat16 or list the layer in 'keep'."
    assert str(error.value) == f"insert-fake-quant: {expected}"


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def quantized(function) -> tuple[set[str], list[str]]:
    graph, result = insert(capture(Function(function).eval(), (torch.randn(2, 5, 6),)))
    values = {node.args[0].name for node in graph.calls("fake_quantize_per_tensor_affine")}
    return values - {"x"}, [skip.why for skip in result.skipped]


def test_a_matrix_product_of_integers_is_one_where_its_result_is_read_so():
    values, skipped = quantized(lambda m, x: m.c(m.a(x) @ m.b(x).mT @ torch.relu(m.a(x))))
    assert values == {"linear", "linear_1", "matmul", "relu", "matmul_1"}
    assert skipped == []
    values, skipped = quantized(lambda m, x: (torch.bmm(m.a(x), m.b(x).transpose(1, 2)), m.c(x)))
    assert values == set() and skipped == []  # the model's own output stays in float


def test_attention_stays_float_between_integer_linears():
    def forward(m, x):
        weights = torch.softmax(m.a(x) @ m.b(x).mT, -1)
        return m.c(weights @ m.a(x))

    values, skipped = quantized(forward)
    assert values == {"matmul_1"}  # what the last linear reads
    assert skipped == ["it multiplies a value that does not come from integers; it stays in float between integer ops"]


# Functions of one value, and what is said of those without a value for every number.
FUNCTIONS = {
    "div by a number": (lambda y: y / 4.0, None),
    "square": (lambda y: y**2, None),
    "erf": (torch.erf, None),
    "selu": (functional.selu, None),
    "abs": (torch.abs, None),
    "div by a value": (lambda y: y / y, "its 'other' is computed"),
    "div by zero": (lambda y: y / 0.0, "its 'other' 0 gives no value for some numbers"),
    "square root": (lambda y: y**0.5, "its 'exponent' 0.5 gives no value for some numbers"),
    "reciprocal": (lambda y: y**-1, "its 'exponent' -1 gives no value for some numbers"),
    "logarithm": (torch.log, "it has no integer form"),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_of_one_value(case):
    function, why = FUNCTIONS[case]
    values, skipped = quantized(lambda m, x: m.b(function(m.a(x))))
    assert len(values) == (1 if why else 2)
    assert skipped == ([f"{why}; it stays in float between integer ops"] if why else [])


def test_classes_are_lost_in_a_saved_graph_and_the_message_says_so(tmp_path):
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), (torch.randn(2, 3, 8, 8),))
    assert Pipeline.parse("insert-fake-quant{keep=[Conv2d]}").run(graph).steps[0].result.skipped
    graph.save(tmp_path / "graph.planish")
    again = type(graph).load(tmp_path / "graph.planish")
    with pytest.raises(UsageError, match=r"'BatchNorm2d' in 'keep' matches no layer or op; .* this graph was saved"):
        Pipeline.parse("insert-fake-quant{keep=[BatchNorm2d]}").run(again)
