"""Integer graphs as ONNX files: onnxruntime's integers are PyTorch's, bit for bit."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from lower_cases import lower, lower_net, random_data, settled
from models import EXAMPLES
from onnx_cases import needs_exact_onnxruntime
from torch import nn
from torch.nn import functional

from planish.backends.onnx import RUNTIMES, check, export, export_onnx, for_runtime, regions
from planish.backends.onnx.exactness import Exactness, exactness
from planish.backends.onnx.operators import is_integer_op
from planish.backends.onnx.simplify import Simplified
from planish.ir.capture import capture, capture_dynamic
from planish.ir.errors import BuildError, UsageError
from planish.ir.ops import op_name
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline

pytestmark = needs_exact_onnxruntime

OPS = torch.ops.planish


def session(path, **entries):
    options = check.session_options()
    for name, value in entries.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(path, *inputs):
    runs = session(path)
    names = [value.name for value in runs.get_inputs()]
    return runs.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))


def kernels(path, tmp_path):
    """The ops that onnxruntime runs."""
    optimized = tmp_path / "optimized.onnx"
    session(path, optimized_model_filepath=str(optimized))
    return collections.Counter(node.op_type for node in onnx.load(optimized).graph.node)


class Maps(nn.Module):
    """Every op on maps that has an integer form."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, (3, 1), padding=(2, 0), dilation=(2, 1), groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.up = nn.ConvTranspose2d(12, 6, 3, 2, 1, 1, groups=2)
        self.gate = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.mix = nn.Conv2d(15, 8, 1, bias=False)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = functional.hardswish(self.stem(x))
        x = functional.relu6(self.grouped(functional.max_pool2d(x, 3, 1, 1)))
        x = x - 0.7 * self.depthwise(x)
        x = functional.gelu(self.up(functional.avg_pool2d(x, 3, 2, 1)))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        y = functional.interpolate(self.norm(x), scale_factor=2)
        y = functional.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
        z = functional.interpolate(functional.pad(x, (1, 0, 0, 1)), size=(8, 8), mode="bilinear")
        first, second = functional.channel_shuffle(z, 2).chunk(2, 1)
        x = self.mix(torch.cat([x, y, torch.flip(first.roll(1, 2), [3])], 1)).clamp(0.1, 0.5)
        return self.head(functional.pixel_unshuffle(functional.pixel_shuffle(x, 2), 2)), second.amax((2, 3))


class Tokens(nn.Module):
    """Attention without softmax, between linear layers over tokens, on top of a conv in one dim."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(4, 12, 3, padding=1)
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x)).transpose(1, 2)
        query, key, value = (
            layer(x).unflatten(2, (3, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = torch.tanh(query @ key.transpose(2, 3)) @ value
        return self.head(x + mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_every_integer_op_is_equal(activations, tmp_path):
    lowered = lower(settled(Maps), random_data(6, 3, 16, 16), activations)
    graph, path = lowered.integer, tmp_path / "model.onnx"
    report = export_onnx(graph, path)
    assert report.equal and report.max_error == 0.0 and report.note == ""
    x = random_data(5, 3, 16, 16, seed=8) * 2  # beyond the calibrated range: many values saturate
    for got, wanted in zip(outputs(path, x), graph(x), strict=True):
        np.testing.assert_array_equal(got, wanted.numpy())
    seen = {op_name(node) for node in graph.nodes if is_integer_op(node)}
    assert seen >= {
        "conv_int32", "conv_transpose_int32", "sum_pool2d_int32", "sum_int32", "mul_int32", "add_int8", "lookup_int8",
        "upsample_bilinear2d_int32", "upsample_nearest2d_int8", "quantize", "requantize", "dequantize",
        "dequantize_int32",
    }  # fmt: skip
    # All convs but the head, whose result is float, and pooling by one divisor and the batch norm, as depthwise convs.
    # The other pooling has a divisor for each position and is counted in float.
    assert kernels(path, tmp_path)["QLinearConv"] == 7
    assert kernels(path, tmp_path)["Conv"] == 2


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_products_of_tokens_are_equal(activations, tmp_path):
    lowered = lower(settled(Tokens), random_data(6, 4, 10), activations)
    graph, path = lowered.integer, tmp_path / "model.onnx"
    assert len(graph.calls("matmul_int32")) == 2 and len(graph.calls("linear_int32")) == 4
    assert export_onnx(graph, path).equal
    x = random_data(3, 4, 10, seed=8) * 2
    np.testing.assert_array_equal(outputs(path, x)[0], graph(x).numpy())
    found = kernels(path, tmp_path)
    assert (found["QGemm"], found["QLinearMatMul"], found["QLinearConv"]) == (4, 2, 1)
    assert found["Gemm"] + found["MatMul"] + found["Conv"] == 0


class Pairs(nn.Module):
    """Ops of two integers, with factors that make ties of every second result."""

    def __init__(self, dtype, zero_point):
        super().__init__()
        ends = torch.iinfo(dtype)
        self.dtype, self.low, self.high, self.zero_point = dtype, ends.min, ends.max, zero_point
        self.register_buffer("multiplier", torch.tensor(0.5))
        self.register_buffer("table", torch.arange(256).mul(91).remainder(256).add(ends.min).to(dtype))

    def forward(self, left, right):
        stored = self.zero_point, self.low, self.high, self.dtype
        a, b = OPS.quantize(left, 1.0, 0, *stored[1:]), OPS.quantize(right, 1.0, 3, *stored[1:])
        added = [OPS.add_int8(a, b, 0, 3, left, right, 2, *stored) for left, right in ((1, 1), (3, -2), (2, 6))]
        product = OPS.requantize(OPS.mul_int32(a, b, 0, 3), self.multiplier, 0, *stored)
        looked_up = OPS.lookup_int8(a, self.table)
        return [OPS.dequantize(q, 1.0, self.zero_point) for q in (*added, product, looked_up)]


@pytest.mark.parametrize(("dtype", "zero_point"), [(torch.uint8, 7), (torch.int8, -3), (torch.int8, 2)])
def test_all_pairs_of_integers_with_their_ties(dtype, zero_point, tmp_path):
    """Ties go to even before the zero point is added: with an odd one, the other order is off by one."""
    every = torch.arange(256).add(torch.iinfo(dtype).min).float()
    left, right = (side.reshape(256, 256) for side in torch.meshgrid(every, every - 3, indexing="ij"))
    graph = capture(Pairs(dtype, zero_point), (left, right))
    assert export_onnx(graph, tmp_path / "model.onnx").equal
    for got, wanted in zip(outputs(tmp_path / "model.onnx", left, right), graph(left, right), strict=True):
        np.testing.assert_array_equal(got, wanted.numpy())


class Wide(nn.Module):
    """Convs with weights of 127 over so many channels that float32 cannot count their sums."""

    def __init__(self, channels, groups=1):
        super().__init__()
        self.groups = groups
        weight = torch.full((channels, 2, 2, 2), 127, dtype=torch.int8)
        weight[::7] = -126
        self.register_buffer("up", weight)
        self.register_buffer("bias", torch.tensor([12345, -6789] * groups, dtype=torch.int32))
        self.register_buffer("scale", torch.tensor([3e-6, 1e-5] * groups))
        self.register_buffer("flat", weight[:, :1, :1, :1].reshape(1, channels, 1, 1).repeat(2, 1, 1, 1))

    def forward(self, x):
        q = OPS.quantize(x, 0.5, 2, 0, 255, torch.uint8)
        up = OPS.conv_transpose_int32(q, self.up, self.bias, [2, 2], [0, 0], [0, 0], self.groups, [1, 1], 2)
        stored = OPS.requantize(up, self.scale, 1, 9, 0, 255, torch.uint8)
        if self.groups > 1:
            return OPS.dequantize(stored, 0.25, 9)
        flat = OPS.conv_int32(q, self.flat, self.bias, [1, 1], [0, 0], [1, 1], 1, 2)
        return OPS.dequantize(stored, 0.25, 9), OPS.dequantize_int32(flat, self.scale, 1)


def test_sums_beyond_float32_are_made_in_parts(tmp_path):
    graph = capture(Wide(1100), (random_data(2, 1100, 2, 2),))
    export_onnx(graph, tmp_path / "model.onnx")
    x = random_data(3, 1100, 2, 2, seed=3).abs() * 100
    for got, wanted in zip(outputs(tmp_path / "model.onnx", x), graph(x), strict=True):
        np.testing.assert_array_equal(got, wanted.numpy())
    ops = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert (ops.count("ConvTranspose"), ops.count("Conv")) == (9, 3)


def test_a_grouped_conv_with_such_sums_is_refused_by_name(tmp_path):
    graph = capture(Wide(2200, groups=2), (random_data(2, 2200, 2, 2),))
    with pytest.raises(
        BuildError, match=r"'planish\.conv_transpose_int32\.default' \(test_onnx_integers\.py:\d+\) has"
    ):
        export_onnx(graph, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_residual_net_runs_in_integer_kernels(tmp_path):
    make, extents = EXAMPLES["mobilenet"]
    lowered = lower(make(), random_data(8, *extents), "uint8", before="fold-batch-norm")
    path, text = tmp_path / "model.onnx", str(lowered.integer)
    report = export_onnx(lowered.integer, path, recipe="lower-integers")
    assert report.equal and report.batches == (1, 3) and str(lowered.integer) == text
    found = kernels(path, tmp_path)
    assert (found["QLinearConv"], found["QGemm"], found["Conv"], found["Gemm"]) == (14, 1, 0, 0)

    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "b"
    held = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    weights = sum(t.numel() for t in lowered.integer.weights.values() if t.dtype == torch.int8)
    assert sum(array.size for array in held if array.dtype == np.int8 and array.ndim > 1) == weights
    assert not [array.shape for array in held if array.dtype == np.float32 and array.ndim > 1]
    biases = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    assert sum(t.data_type == onnx.TensorProto.INT32 and t.name in biases for t in model.graph.initializer) == 15


def test_weights_in_float_are_an_error(tmp_path, monkeypatch):
    """The exporter's own fault: a float copy of each weight, as folding DequantizeLinear makes it."""
    convert = export.convert

    def faulty(*args):
        model = convert(*args)
        for tensor in list(model.graph.initializer):
            if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.INT8:
                copy = onnx.numpy_helper.to_array(tensor).astype(np.float32)
                model.graph.initializer.append(onnx.numpy_helper.from_array(copy, f"{tensor.name}_float"))
        return model

    monkeypatch.setattr(export, "convert", faulty)
    monkeypatch.setattr(export, "simplify", lambda plain, *_: Simplified(plain))
    model = settled(lambda: nn.Sequential(nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, 8)))
    graph = lower(model, random_data(8, 64)).integer
    with pytest.raises(
        BuildError, match=r"would hold .* bytes of weights; quantized weights were unpacked or repeated"
    ):
        export_onnx(graph, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_one_integer_off_by_one_is_an_error(tmp_path, monkeypatch):
    to_qdq = export.to_qdq

    def faulty(graph):
        twin = to_qdq(graph)
        name = next(name for name, t in twin.weights.items() if t.dtype == torch.int32 and t.ndim)
        twin.weight(name)[0] += 3
        return twin

    monkeypatch.setattr(export, "to_qdq", faulty)
    graph = lower_net(lambda m, x: m.other(torch.relu(m.conv(x)))).integer
    with pytest.raises(BuildError, match=r"output '.*' differs from PyTorch by .* at batch .; at most 0 is allowed"):
        export_onnx(graph, tmp_path / "model.onnx")


def test_how_exact_an_output_must_be(tmp_path):
    """Bit for bit behind integer ops; within rounding behind float ones; within steps where those are quantized."""

    def three(m, x):
        first = m.conv(x)
        normed = m.other(functional.layer_norm(first, first.shape[1:]))
        return first.flatten(1), functional.softmax(first.flatten(1), 1), normed

    graph = lower_net(three).integer
    assert exactness(graph) == [Exactness.EQUAL, Exactness.ROUNDED, Exactness.STEPS]
    report = export_onnx(graph, tmp_path / "model.onnx")
    assert report.max_error < 0.05
    x = random_data(2, 4, 8, 8, seed=5)
    first, second, third = outputs(tmp_path / "model.onnx", x)
    wanted = graph(x)
    np.testing.assert_array_equal(first, wanted[0].numpy())
    np.testing.assert_allclose(second, wanted[1].numpy(), rtol=1e-5)  # float32, one exp and one sum
    assert np.abs(third - wanted[2].numpy()).max() < 0.05 * np.abs(third).max()  # a few steps of 1/255


def test_an_integer_region_behind_float_ops_is_exact_or_an_error(tmp_path, monkeypatch):
    """A bias that is off by 3 units of thousands: far below what steps would excuse, and found."""
    to_qdq = export.to_qdq

    def faulty(graph):
        twin = to_qdq(graph)
        twin.weight("other.bias_int32")[1] += 3
        return twin

    def forward(m, x):
        return m.other(functional.layer_norm(m.conv(x), [4, 8, 8]))

    graph = lower_net(forward).integer
    assert exactness(graph) == [Exactness.STEPS]
    export_onnx(graph, tmp_path / "model.onnx")
    monkeypatch.setattr(export, "to_qdq", faulty)
    monkeypatch.setattr(regions, "to_qdq", faulty)
    with pytest.raises(BuildError, match=r"differs from PyTorch by .*; at most 0 is allowed on the same integers"):
        export_onnx(graph, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_tokens_and_batch_both_dynamic(tmp_path):
    model = settled(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    data = random_data(4, 5, 6)
    graph = capture_dynamic(model, (data,), {}, {0: {0, 1}})
    passes = Pipeline.parse("insert-fake-quant, calibrate, lower-integers")
    graph = passes.run(graph, Context(data=data)).graph
    assert export_onnx(graph, tmp_path / "model.onnx").equal
    export_onnx(graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    for x in (random_data(1, 7, 6), random_data(3, 2, 6)):
        np.testing.assert_array_equal(outputs(tmp_path / "model.onnx", x)[0], graph(x).numpy())


def test_a_recipe_for_a_runtime():
    recipe = Pipeline.parse("fold-batch-norm, insert-fake-quant{keep=[head]}, calibrate, lower-integers")
    for name, row in RUNTIMES.items():
        (found,) = [entry for entry in for_runtime(recipe, name) if entry.name == "insert-fake-quant"]
        assert (found.activations, found.keep) == (row.activations, ("head",))
    assert [RUNTIMES[name].activations for name in ("onnxruntime-x86", "onnxruntime-arm")] == ["uint8", "int8"]
    with pytest.raises(UsageError, match=r"--for: unknown runtime 'openvion'; did you mean 'openvino'\?"):
        for_runtime(recipe, "openvion")
