"""ONNX files come in: the graph computes what onnxruntime computes, and what has no form is named."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from models import EXAMPLES
from onnx import TensorProto, helper, numpy_helper

import planish
from planish.backends.onnx import export_onnx, import_onnx
from planish.backends.onnx.convert import convert
from planish.backends.onnx.importing import operators
from planish.ir.capture import capture
from planish.ir.cost import cost
from planish.ir.errors import CaptureError, UsageError
from planish.sources import load_model


def file(tmp_path, nodes, inputs, rank=4, constants=None, opset=20):
    """An ONNX file of these nodes, with float inputs and an output `y` of this rank."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", values, results, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def agrees(path, *shape, batch=3):
    """The graph against onnxruntime on other inputs than the import looked at."""
    graph = import_onnx(path)
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    found = graph(x)
    for expected, got in zip(wanted, found if isinstance(found, tuple) else [found], strict=True):
        # float32: sums of up to some hundred terms in another order.
        np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    return graph


@pytest.mark.parametrize("name", ["densenet", "vgg", "mlp"])
def test_our_own_files_come_back(name, tmp_path):
    make, extents = EXAMPLES[name]
    graph = capture(make(), (torch.randn(2, *extents),))
    onnx.save(convert(graph, 20), tmp_path / "model.onnx")
    back = agrees(tmp_path / "model.onnx", *extents)
    assert back.inputs[0].shape == ("b", *extents)
    assert {"classifier.weight", "0.weight", "8.weight"} & set(back.parameters)


def test_an_imported_model_is_trained_thinned_and_compiled(tmp_path):
    make, extents = EXAMPLES["mlp"]
    export_onnx(capture(make(), (torch.randn(2, *extents),)), tmp_path / "net.onnx")
    found = load_model(str(tmp_path / "net.onnx"))
    assert found.name == "net"
    thinned = planish.Pipeline.parse("prune-channels{macs=0.6}").run(found.model).graph
    assert cost(thinned).macs < 0.61 * cost(found.model).macs
    thinned.train()(torch.randn(2, *extents)).sum().backward()
    assert all(p.grad is not None for p in thinned.parameters.values())
    compiled = planish.compile(tmp_path / "net.onnx")
    x = torch.randn(1, *extents)
    torch.testing.assert_close(compiled(x), found.model(x), rtol=0, atol=1e-5)  # float32, three layers


def test_shapes_that_are_computed(tmp_path):
    """View as TorchScript writes it: the batch is read from the tensor, and stays open."""
    nodes = [
        ("Shape", ["x"], ["s"], {}),
        ("Gather", ["s", "first"], ["b"], {}),
        ("Unsqueeze", ["b", "axis"], ["b1"], {}),
        ("Mul", ["b1", "two"], ["b2"], {}),
        ("Concat", ["b2", "rest"], ["shape"], {"axis": 0}),
        ("Reshape", ["x", "shape"], ["r"], {}),
        ("ReduceMean", ["r", "axis_2"], ["m"], {"keepdims": 0}),
        ("Slice", ["m", "start", "end", "axis_1", "step"], ["y"], {}),
    ]
    constants = {
        "first": np.int64(0), "axis": np.array([0]), "two": np.array([2]), "rest": np.array([3, -1]),
        "axis_1": np.array([1]), "axis_2": np.array([2]), "start": np.array([-1]), "end": np.array([-100]),
        "step": np.array([-1]),
    }  # fmt: skip
    graph = agrees(file(tmp_path, nodes, {"x": ["n", 6, 4]}, 2, constants), 6, 4)
    assert graph.inputs[0].shape == ("b", 6, 4) and graph.outputs[0].shape == ("2*b", 3)


WEIGHT = np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32)
ONES = np.linspace(0.5, 1.5, 4, dtype=np.float32)
CASES = {
    "uneven padding": [("Conv", ["x", "w"], ["y"], {"pads": [0, 1, 1, 0], "strides": [2, 1]})],
    "transposed": [("ConvTranspose", ["x", "w"], ["y"], {"pads": [1, 1, 1, 1], "strides": [2, 2], "group": 1})],
    "batch norm": [("BatchNormalization", ["x", "v", "v", "v", "v"], ["y"], {"epsilon": 1e-3})],
    "instance norm": [("InstanceNormalization", ["x", "v", "v"], ["y"], {})],
    "pools": [
        ("MaxPool", ["x"], ["p"], {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "strides": [2, 2]}),
        ("AveragePool", ["p"], ["q"], {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 0}),
        ("GlobalAveragePool", ["q"], ["y"], {}),
    ],
    "activations": [
        ("HardSigmoid", ["x"], ["a"], {"alpha": 0.3, "beta": 0.4}),
        ("LeakyRelu", ["x"], ["b"], {"alpha": 0.2}),
        ("PRelu", ["b", "slope"], ["c"], {}),
        ("Elu", ["c"], ["d"], {"alpha": 0.7}),
        ("Clip", ["d", "low", "high"], ["e"], {}),
        ("Gelu", ["e"], ["f"], {"approximate": "tanh"}),
        ("Sum", ["a", "f", "x"], ["y"], {}),
    ],
    "arithmetic": [
        ("Pow", ["x", "high"], ["a"], {}),
        ("Max", ["a", "low"], ["b"], {}),
        ("Div", ["b", "high"], ["c"], {}),
        ("Where", ["mask", "c", "low"], ["d"], {}),
        ("Sub", ["high", "d"], ["e"], {}),
        ("ReduceL2", ["e", "axes"], ["y"], {"keepdims": 0}),
    ],
    "moves": [
        ("Split", ["x"], ["a", "b"], {"axis": 1, "num_outputs": 2}),
        ("Concat", ["b", "a"], ["c"], {"axis": -1}),
        ("Transpose", ["c"], ["d"], {"perm": [0, 2, 3, 1]}),
        ("Gather", ["d", "indices"], ["e"], {"axis": -1}),
        ("Pad", ["e", "sides", "", "axes"], ["f"], {}),
        ("Flatten", ["f"], ["y"], {"axis": 2}),
    ],
    "resized": [
        ("Resize", ["x", "", "scales"], ["a"], {"mode": "linear"}),
        ("Resize", ["a", "", "scales"], ["y"],
         {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ],
    "softmax": [("Softmax", ["x"], ["a"], {"axis": 1}), ("LogSoftmax", ["a"], ["y"], {"axis": -1})],
    "matrix": [
        ("Flatten", ["x"], ["a"], {}),
        ("Gemm", ["a", "m", "o"], ["b"], {"alpha": 0.5, "beta": 2.0}),
        ("MatMul", ["b", "n"], ["y"], {}),
    ],
}  # fmt: skip
CONSTANTS = {
    "w": WEIGHT, "v": ONES, "slope": ONES.reshape(4, 1, 1), "low": np.float32(-0.3), "high": np.float32(2.0),
    "mask": np.arange(36).reshape(6, 6) % 3 > 0, "axes": np.array([2, 3]), "indices": np.array([[1, 0], [-1, 1]]),
    "sides": np.array([1, 0, 0, 2]), "scales": np.array([1, 1, 2, 3], np.float32),
    "m": WEIGHT.reshape(-1)[:144].reshape(144, 1) * np.ones((1, 5), np.float32), "o": np.float32([[1, 2, 3, 4, 5]]),
    "n": WEIGHT.reshape(-1)[:10].reshape(5, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operators_against_onnxruntime(case, tmp_path):
    nodes = CASES[case]
    read = {name for node in nodes for name in node[1]}
    constants = {name: value for name, value in CONSTANTS.items() if name in read}
    rank = 2 if case in ("arithmetic", "moves", "matrix") else 4
    agrees(file(tmp_path, nodes, {"x": ["n", 4, 6, 6]}, rank, constants), 4, 6, 6)


def test_axes_as_older_opsets_hold_them(tmp_path):
    nodes = [
        ("ReduceMean", ["x"], ["a"], {"axes": [1], "keepdims": 0}),
        ("Unsqueeze", ["a"], ["b"], {"axes": [1]}),
        ("Softmax", ["b"], ["y"], {}),  # over all dims from 1 on
    ]
    agrees(file(tmp_path, nodes, {"x": ["n", 4, 6, 6]}, opset=11), 4, 6, 6)


def test_names_that_modules_cannot_have(tmp_path):
    nodes = [("Conv", ["x", "onnx::Conv_1"], ["a"], {}), ("Mul", ["a", "training"], ["b"], {}),
             ("Add", ["b", "conv"], ["c"], {}), ("Add", ["c", "conv.weight"], ["y"], {})]  # fmt: skip
    column = ONES.reshape(1, 4, 1, 1)
    constants = {"onnx::Conv_1": WEIGHT, "training": column, "conv": column, "conv.weight": column}
    graph = agrees(file(tmp_path, nodes, {"x": ["n", 4, 6, 6]}, constants=constants), 4, 6, 6)
    assert set(graph.parameters) == {"onnx__Conv_1", "training_", "conv", "conv_.weight"}


def test_an_operator_without_a_form_is_named(tmp_path):
    path = file(tmp_path, [("Det", ["x"], ["a"], {}), ("Relu", ["a"], ["y"], {})], {"x": ["n", 3, 3]}, 1)
    with pytest.raises(CaptureError, match=r"model\.onnx: 'Det' has no form in PyTorch here; capture the model"):
        import_onnx(path)
    how = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel"}
    path = file(tmp_path, [("Resize", ["x", "", "s"], ["y"], how)], {"x": ["n", 1, 3, 3]},
                constants={"s": np.float32([1, 1, 2, 2])})  # fmt: skip
    with pytest.raises(CaptureError, match=r"ONNX operator 'Resize': mode nearest with half_pixel coordinates"):
        import_onnx(path)


@pytest.mark.parametrize(
    ("opset", "shape", "message"),
    [
        (9, [1, 3], r"its opset is 9; expected 11 to 23"),
        (20, ["n", "m"], r"input 'x' has open extents besides the first: \[0, 0\]; fix them in the file"),
    ],
)
def test_files_that_are_refused(opset, shape, message, tmp_path):
    path = file(tmp_path, [("Relu", ["x"], ["y"], {})], {"x": shape}, 2, opset=opset)
    with pytest.raises(UsageError, match=message):
        import_onnx(path)


def test_a_wrong_form_is_found_at_import(tmp_path, monkeypatch):
    """A fault of the table: onnxruntime disagrees."""
    monkeypatch.setitem(operators.OPS, "Elu", lambda call, x: torch.relu(x))
    path = file(tmp_path, [("Elu", ["x"], ["y"], {})], {"x": ["n", 3]}, 2)
    with pytest.raises(CaptureError, match=r"output 'y' differs from onnxruntime's by .*; at most 0\.0001 is allowed"):
        import_onnx(path)
