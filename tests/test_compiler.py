"""compile(): from a model to code that gives PyTorch's answers, here and on an emulated board."""

import hashlib
from typing import Any

import models
import pytest
import torch

import planish
from planish.ir.errors import UsageError
from planish.report import Report

# float32 against float64 through a dozen layers: a few rounding steps of values near 1.
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
THIN = "canonicalize, fold-batch-norm, prune-channels{ratio=0.5, round-to=1}"
QUANTIZED = "fold-batch-norm, insert-fake-quant, calibrate"


def exact(model, *inputs):
    """The model's outputs computed in float64."""
    double = planish.capture(model, inputs).copy().module.double()
    with torch.no_grad():
        return double(*(t.double() for t in inputs)).float()


def small():
    """Two convs with their batch norms and a head: every stage has something to do, and little of it."""
    torch.manual_seed(0)
    convs = models.ConvNorm(3, 16), models.ConvNorm(16, 24, 1)
    return torch.nn.Sequential(*convs, torch.nn.Flatten(), torch.nn.Linear(24 * 64, 5)).eval()


IMAGE = (3, 8, 8)


def loader(batches=2, shape=(3, 8, 8)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, *shape, generator=generator) for _ in range(batches)]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Dictionary(torch.nn.Module):
    """Takes two inputs, one by name, and gives a nested result."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x, shift):
        y = self.head(x)
        return {"plain": y, "more": (y + shift, torch.relu(y))}


@pytest.mark.parametrize("name", ["vgg", "mlp"])
def test_the_compiled_model_answers_like_pytorch(name):
    make, shape = models.EXAMPLES[name]
    model, x = make(), torch.randn(2, *shape)
    compiled = planish.compile(model, x)
    torch.testing.assert_close(compiled(x), exact(model, x), **TOLERANCE)


def test_a_board_s_code_answers_like_pytorch_on_the_emulator():
    model, x = small(), torch.randn(1, *IMAGE)
    compiled = planish.compile(model, x, target="raspberry-pi-4")
    torch.testing.assert_close(compiled(x), exact(model, x), **TOLERANCE)
    assert {layer["instruction"] for layer in compiled.report.layers} >= {"fmla v.4s"}


def test_outputs_keep_the_model_s_structure():
    model, x, shift = Dictionary().eval(), torch.randn(3, 8), torch.randn(3, 4)
    got, want = planish.compile(model, (x, shift))(x, shift=shift), model(x, shift)
    assert set(got) == {"plain", "more"}
    assert isinstance(got["more"], tuple)
    torch.testing.assert_close(got, want, **TOLERANCE)


def test_a_dynamic_batch_takes_any_batch(tmp_path):
    model, x = models.mlp(), torch.randn(2, 20)
    compiled = planish.compile(model, x, batch="dynamic")
    loaded = planish.load(compiled.save(tmp_path / "mlp.planish"))
    for batch in (1, 2, 7):
        y = torch.randn(batch, 20)
        torch.testing.assert_close(compiled(y), exact(model, y), **TOLERANCE)
        torch.testing.assert_close(loaded(y), exact(model, y), **TOLERANCE)


def test_the_batch_is_the_example_s_unless_it_is_given():
    model = models.mlp()
    assert planish.compile(model, torch.randn(3, 20))(torch.randn(3, 20)).shape == (3, 5)
    assert planish.compile(model, torch.randn(3, 20), batch=2)(torch.randn(2, 20)).shape == (2, 5)


def test_the_report_says_what_was_done():
    model, x = small(), torch.randn(1, *IMAGE)
    compiled = planish.compile(model, x, recipe=THIN)
    report = compiled.report
    parameters = sum(p.numel() for p in model.parameters())
    assert report.before["params"] == parameters
    assert report.after["params"] == sum(p.numel() for p in compiled.graph.parameters.values()) < 0.6 * parameters
    assert [entry.text.partition("{")[0] for entry in report.passes] == THIN.partition("{")[0].split(", ")
    assert report.recipe == THIN
    assert report.int8_kernels == "0 of 3"
    assert {"capture", "passes", "build"} == set(report.seconds)
    torch.testing.assert_close(compiled(x), compiled.graph(x), **TOLERANCE)


def test_a_report_survives_its_own_document():
    report = planish.compile(models.mlp(), torch.randn(1, 20), recipe="canonicalize").report
    assert Report.from_dict(report.as_dict()) == report
    assert Report.from_dict({}) is None
    assert Report.from_dict({**report.as_dict(), "before": "much"}) is None
    assert Report.from_dict({**report.as_dict(), "passes": [{"text": "x"}]}) is None


def test_fake_quantized_layers_are_reported_as_float():
    report = planish.compile(small(), torch.randn(1, *IMAGE), recipe=QUANTIZED, data=loader()).report
    assert (report.fake_quantized, report.products, report.int8_kernels) == (3, 3, "0 of 3")
    assert "3 of 3, computed in float" in str(report)


def test_the_report_keeps_to_the_terminal():
    from rich.console import Console

    report = planish.compile(small(), torch.randn(1, *IMAGE), recipe=THIN).report
    for width in (80, 110, 160):
        console = Console(width=width, color_system=None, markup=False)
        with console.capture() as captured:
            console.print(report)
        assert max(map(len, captured.get().splitlines())) <= width
        assert "vfmadd" in captured.get() or "fmla" in captured.get()


@pytest.mark.parametrize("target", ["local", "raspberry-pi-4"])
def test_the_same_input_gives_the_same_bytes(tmp_path, target):
    x = torch.randn(1, *IMAGE)

    def build(name):
        compiled = planish.compile(small(), x, recipe=QUANTIZED, data=loader(), target=target)
        return digest(compiled.save(tmp_path / name))

    assert build("first.planish") == build("second.planish")


def test_a_saved_graph_goes_on_where_it_stopped(tmp_path):
    graph = planish.capture(models.mlp(), torch.randn(2, 20))
    quantized = planish.Pipeline.parse("insert-fake-quant").run(graph).graph
    quantized.save(tmp_path / "mlp.graph")
    compiled = planish.compile(tmp_path / "mlp.graph", recipe="calibrate", data=loader(shape=(20,)))
    assert "calibrated" in compiled.graph.properties


def test_progress_is_told_of_every_stage():
    told = []

    def progress(items, label):
        told.append(label)
        yield from items

    planish.compile(models.mlp(), torch.randn(1, 20), recipe="canonicalize", progress=progress)
    assert told == ["capture", "passes", "build"]


def nan_weights():
    model = models.mlp()
    with torch.no_grad():
        model[2].weight[3, 4] = float("nan")
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "fold-batchnorm"}, "unknown pass 'fold-batchnorm'; did you mean 'fold-batch-norm'?"),
        ({"recipe": "prune-channels{ration=0.5}"}, "unknown option 'ration'; did you mean 'ratio'?"),
        ({"recipe": "calibrate, insert-fake-quant", "data": []}, "calibrate: it needs 'fake-quant'; put"),
        ({"recipe": "insert-fake-quant, calibrate"}, "calibrate: no data was given"),
        ({"recipe": "insert-fake-quant, calibrate", "data": []}, "calibrate: the loader is empty"),
        (
            {"recipe": "insert-fake-quant, calibrate", "data": [torch.full((2, 20), float("nan"))]},
            "calibrate, batch 1: input 'input_1' holds NaN or infinity",
        ),
        (
            {"recipe": "insert-fake-quant, calibrate", "data": [torch.zeros(2, 19)]},
            "calibrate, batch 1: input 'input_1' is f32[2,19]; expected input_1 : f32[b,20]",
        ),
        ({"recipe": "prune-channels{ratio=1}"}, "leaves 0; lower 'ratio' or list the layer in 'keep'"),
        ({"target": "raspbery-pi-4"}, "unknown target 'raspbery-pi-4'; did you mean 'raspberry-pi-4'?"),
        ({"target": "raspberry-pi-4", "batch": "dynamic"}, "'dynamic' was given for raspberry-pi-4"),
        ({"batch": "many"}, "batch: 'many' was given"),
        ({"batch": 0}, "batch: 0 was given"),
        ({"model": nan_weights()}, "weight '2.weight'"),
        ({"model": "no/such/model.pt2"}, "there is no file 'no/such/model.pt2'"),
        ({"args": None}, "no example inputs were given"),
    ],
)
def test_a_wrong_call_is_refused(change, message):
    call = {"model": models.mlp(), "args": torch.randn(2, 20), **change}
    with pytest.raises(UsageError) as caught:
        planish.compile(**call)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_compiled_model_checks_its_inputs():
    compiled = planish.compile(models.mlp(), torch.randn(2, 20))
    with pytest.raises(UsageError, match=r"input 'input_1' is f32\[3,20\]; expected input_1 : f32\[2,20\]"):
        compiled(torch.randn(3, 20))
    with pytest.raises(UsageError, match="0 inputs were given"):
        compiled()


def test_a_model_is_thinned_trained_and_compiled_with_a_loss_of_its_own():
    seen = []

    def loss(outputs, labels):
        seen.append(labels)
        return (outputs - labels).square().mean()

    data = [(images, torch.zeros(4, 5)) for images in loader()]
    recipe = "prune-channels{macs=0.6, importance=taylor}, finetune{steps=2, lr=0.001}"
    compiled = planish.compile(small(), torch.randn(1, *IMAGE), recipe=recipe, data=data, loss=loss)
    assert len(seen) == 4  # two batches that score, two steps
    x = torch.randn(1, *IMAGE)
    torch.testing.assert_close(compiled(x), exact(compiled.graph.module, x), **TOLERANCE)
