"""ONNX export against onnxruntime and PyTorch, and what it refuses."""

import onnx
import onnxruntime
import onnxsim
import pytest
import torch
from models import EXAMPLES
from torch import nn

from planish.backends.onnx import export, export_onnx
from planish.ir.capture import capture
from planish.ir.errors import BuildError, UsageError
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def graph_of(function):
    return capture(Function(function), (torch.randn(2, 4),))


@pytest.mark.parametrize("name", ["resnet", "efficientnet", "mlp"])
def test_the_file_gives_pytorchs_answers_at_any_batch(name, tmp_path):
    make, extents = EXAMPLES[name]
    model = make()
    graph = capture(model, (torch.randn(2, *extents),))
    report = export_onnx(graph, tmp_path / "model.onnx", recipe="canonicalize")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, *extents)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        wanted = model.double()(x.double()).detach()
        # float32 against float64: sums of a few hundred terms, a dozen layers deep.
        assert float((torch.from_numpy(got) - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert report.simplified and report.note == ""
    assert report.max_error < 1e-5 and report.batches == (1, 3)
    assert report.bytes == (tmp_path / "model.onnx").stat().st_size


def test_metadata_and_symbolic_batch(tmp_path):
    graph = graph_of(lambda m, x: m.linear(x))
    export_onnx(graph, tmp_path / "model.onnx", recipe="fold-batch-norm")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, {p.key: p.value for p in model.metadata_props}) == (
        "planish",
        {"planish.recipe": "fold-batch-norm"},
    )
    assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
    for value in (*model.graph.input, *model.graph.output):
        assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == ["b", 4]
    assert b"/test_onnx.py" not in (tmp_path / "model.onnx").read_bytes()  # no paths of this machine


def test_two_exports_are_the_same_bytes_and_the_graph_is_untouched(tmp_path):
    make, extents = EXAMPLES["vgg"]
    graph = capture(make(), (torch.randn(2, *extents),))
    text = str(graph)
    for name in ("one", "two"):
        export_onnx(graph, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert str(graph) == text


def test_a_static_batch_is_compared_at_that_batch(tmp_path):
    graph = capture(Function(lambda m, x: m.linear(x)), (torch.randn(2, 4),), dynamic_batch=False)
    assert export_onnx(graph, tmp_path / "model.onnx").batches == (1,)
    (value,) = onnx.load(tmp_path / "model.onnx").graph.input
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [2, 4]


def test_several_inputs_and_outputs_keep_their_order(tmp_path):
    class Two(nn.Module):
        def forward(self, x, scale):
            return {"product": x * scale, "total": x.sum(1)}

    graph = capture(Two(), (torch.randn(2, 4), torch.randn(2, 4)))
    export_onnx(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x, scale = torch.randn(3, 4), torch.randn(3, 4)
    names = [value.name for value in session.get_inputs()]
    product, total = session.run(None, dict(zip(names, (x.numpy(), scale.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(product), x * scale, rtol=0, atol=0)
    torch.testing.assert_close(torch.from_numpy(total), x.sum(1))


def test_an_op_that_onnx_lacks_is_named_with_its_line(tmp_path):
    graph = graph_of(lambda m, x: torch.special.bessel_j0(m.linear(x)))
    with pytest.raises(BuildError) as error:
        export_onnx(graph, tmp_path / "model.onnx")
    assert "'aten.special_bessel_j0.default' (test_onnx.py:" in str(error.value)
    assert "has no ONNX form in torch.onnx" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_with_fake_quantizers_is_refused(tmp_path):
    graph = graph_of(lambda m, x: m.linear(x))
    graph = Pipeline.parse("insert-fake-quant, calibrate").run(graph, Context(data=torch.randn(8, 4))).graph
    with pytest.raises(BuildError) as error:
        export_onnx(graph, tmp_path / "model.onnx")
    assert "onnx: the graph holds 2 quantizers" in str(error.value)
    assert "a file holds integers, not what imitates them; add lower-integers." in str(error.value)


def test_a_wrong_opset_is_refused(tmp_path):
    with pytest.raises(UsageError, match="onnx: opset is 11; expected 18 to 23"):
        export_onnx(graph_of(lambda m, x: m.linear(x)), tmp_path / "model.onnx", opset=11)


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ("grows", "it grew from"),
        ("wrong weight", "differs from PyTorch"),
        ("raises", "out of nodes"),
        ("malformed", "the exported model is refused"),
    ],
)
def test_a_bad_simplification_is_not_taken(fault, note, tmp_path, monkeypatch):
    """onnxsim is made to fail in four ways; the plain model is written and the report says so."""
    simplify = onnxsim.simplify

    def faulty(model):
        simpler, checked = simplify(model)
        if fault == "raises":
            raise RuntimeError("out of nodes")
        if fault == "grows":
            spare = onnx.numpy_helper.from_array(torch.zeros(5000).numpy(), "spare")
            simpler.graph.initializer.append(spare)
        if fault == "wrong weight":
            weight = next(i for i in simpler.graph.initializer if len(i.dims) == 2)
            weight.CopyFrom(onnx.numpy_helper.from_array(torch.ones(tuple(weight.dims)).numpy(), weight.name))
        if fault == "malformed":
            simpler.graph.node[0].op_type = "Nothing"
        return simpler, checked

    monkeypatch.setattr(onnxsim, "simplify", faulty)
    graph = graph_of(lambda m, x: m.linear(x))
    report = export_onnx(graph, tmp_path / "model.onnx")
    assert not report.simplified
    assert note in report.note
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(2, 4)
    (got,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), graph(x))


def test_constants_that_onnxsim_would_unpack_stay_packed(tmp_path):
    """Folding makes a 4 MB table of what is one Range and one Sin."""
    graph = graph_of(lambda m, x: m.linear(x).sum() + torch.arange(1_000_000).float().sin())
    report = export_onnx(graph, tmp_path / "model.onnx")
    assert not report.simplified and "it grew from" in report.note
    assert report.bytes < 10_000


def test_a_growing_file_is_an_error(tmp_path, monkeypatch):
    """The exporter's own fault: 4 MB beside 80 bytes of weights, and no simplification to drop them."""
    convert = export.convert

    def faulty(*args):
        model = convert(*args)
        model.graph.initializer.append(onnx.numpy_helper.from_array(torch.zeros(1_000_000).numpy(), "spare"))
        return model

    monkeypatch.setattr(export, "convert", faulty)
    monkeypatch.setattr(onnxsim, "simplify", lambda model: (model, True))
    with pytest.raises(BuildError, match=r"onnx: the file would have 4,000,.* bytes for 80 bytes of weights"):
        export_onnx(graph_of(lambda m, x: m.linear(x)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_differ_are_an_error(tmp_path, monkeypatch):
    """The exporter's own fault: a weight is changed between export and comparison."""
    graph = graph_of(lambda m, x: m.linear(x))
    convert = export.convert

    def faulty(*args):
        model = convert(*args)
        weight = model.graph.initializer[0]
        weight.CopyFrom(onnx.numpy_helper.from_array(torch.ones(tuple(weight.dims)).numpy(), weight.name))
        return model

    monkeypatch.setattr(export, "convert", faulty)
    with pytest.raises(BuildError, match=r"output 'linear' differs from PyTorch by .* at batch 1; at most 0\.0001"):
        export_onnx(graph, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
