"""Models that take and give integers: the same numbers as the model with float edges, quantized."""

import zipfile

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import planish
from planish.backends.onnx import export_onnx
from planish.ir.errors import UsageError
from planish.ir.graph import Graph

RECIPE = "insert-fake-quant{{activations={}, edges={}}}, calibrate, lower-integers"


class TwoOutputs(nn.Module):
    """A conv whose epilogue an output reads, one that is flattened, and a float op that reads the input too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 5, 1)
        self.head = nn.Linear(5 * 42, 4)

    def forward(self, x):
        y = F.relu(self.first(x))
        z = self.second(y * F.softmax(x.mean((2, 3), keepdim=True), 1).sum(1, keepdim=True))
        return y, self.head(torch.flatten(z, 1))


@pytest.fixture(scope="module")
def captured() -> tuple[Graph, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        x = torch.randn(3, 3, 6, 7)
        return planish.capture(TwoOutputs().eval(), (x,)), x


def lowered(captured: tuple[Graph, torch.Tensor], text: str):
    graph, x = captured
    return planish.Pipeline.parse(text).run(graph, planish.Context(data=[x]))


def quantized(x: torch.Tensor, spec) -> torch.Tensor:
    ends = torch.iinfo(spec.dtype)
    return torch.ops.planish.quantize(x, spec.scale, spec.zero_point, ends.min, ends.max, spec.dtype)


def real(q: torch.Tensor, spec) -> torch.Tensor:
    return q if spec.scale is None else (q.float() - spec.zero_point) * spec.scale


@pytest.mark.parametrize("activations", ["int8", "uint8"])
@pytest.mark.parametrize("edges", ["inputs", "outputs", "integer"])
def test_the_numbers_are_those_of_float_edges(captured, activations, edges):
    """Equal, for q - zero_point of 8 bits times a scale of 10 bits is exact in float32."""
    recipe, x = RECIPE.format(activations, edges), captured[1]
    with_floats = lowered(captured, recipe).graph
    graph = lowered(captured, recipe + f"{{edges={edges}}}").graph
    bytes_in, bytes_out = edges in ("inputs", "integer"), edges in ("outputs", "integer")
    kind = getattr(torch, activations)
    assert [spec.dtype for spec in graph.inputs] == [kind if bytes_in else torch.float32]
    assert [spec.dtype for spec in graph.outputs] == [kind if bytes_out else torch.float32] * 2
    given = quantized(x, graph.inputs[0]) if bytes_in else x
    for got, spec, wanted in zip(graph(given), graph.outputs, with_floats(x), strict=True):
        assert torch.equal(real(got, spec), wanted)
    assert str(graph.inputs[0].shape) == "('b', 3, 6, 7)"


def test_the_float_model_is_near(captured):
    """Both outputs within three steps of the float model's: a wrong zero point or scale would be far off."""
    graph = lowered(captured, RECIPE.format("int8", "integer") + "{edges=integer}").graph
    x = captured[1]
    for got, spec, wanted in zip(graph(quantized(x, graph.inputs[0])), graph.outputs, captured[0](x), strict=True):
        assert (real(got, spec) - wanted).abs().max() <= 3 * spec.scale


def test_what_integers_stand_for_survives_copies_and_files(captured, tmp_path):
    graph = lowered(captured, RECIPE.format("int8", "integer") + "{edges=integer}").graph
    graph.save(tmp_path / "graph")
    for other in (graph.copy(), Graph.load(tmp_path / "graph")):
        assert other.inputs == graph.inputs
        assert other.outputs == graph.outputs
    assert all(spec.scale and spec.zero_point is not None for spec in [*graph.inputs, *graph.outputs])


@pytest.mark.parametrize("target", ["local", "raspberry-pi-4"])
def test_bundles_say_what_integers_stand_for(captured, target, tmp_path):
    graph = lowered(captured, RECIPE.format("int8", "integer") + "{edges=integer}").graph
    q = quantized(captured[1], graph.inputs[0])
    compiled = planish.compile(graph, recipe="", batch=3, target=target)
    assert torch.equal(compiled(q)[0], graph(q)[0])  # the second one is behind float ops, which round in their order
    path = compiled.save(tmp_path / "model.planish")
    manifest = planish.load(path, "local" if target == "local" else "emulator").manifest
    for own, spec in zip([*manifest.inputs, *manifest.outputs], [*graph.inputs, *graph.outputs], strict=True):
        assert (own.dtype, own.scale, own.zero_point) == ("int8", spec.scale, spec.zero_point)
    if target != "local":
        header = zipfile.ZipFile(path).read("code/model.h").decode()
        assert "int model_run(const int8_t *in, int8_t *out0, int8_t *out1);" in header
        assert f"#define MODEL_IN_SCALE {graph.inputs[0].scale.hex()}f\n" in header
        assert f"#define MODEL_OUT1_ZERO_POINT ({graph.outputs[1].zero_point})\n" in header


def test_onnx_files_take_and_give_bytes(captured, tmp_path):
    graph = lowered(captured, RECIPE.format("uint8", "integer") + "{edges=integer}").graph
    export_onnx(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.type for value in [*session.get_inputs(), *session.get_outputs()]] == ["tensor(uint8)"] * 3
    q = quantized(captured[1], graph.inputs[0])
    (first, _) = session.run(None, {session.get_inputs()[0].name: q.numpy()})
    assert torch.equal(torch.from_numpy(first), graph(q)[0])


def test_edges_without_a_quantizer_stay_float_and_say_so(captured):
    outcome = lowered(captured, RECIPE.format("int8", "float") + "{edges=outputs}")
    skips = [skip for skip in outcome.steps[-1].result.skipped if "no quantizer stands behind this output" in skip.why]
    assert len(skips) == 2  # the quantizer of the relu serves its inner reader alone
    assert [spec.dtype for spec in outcome.graph.outputs] == [torch.float32] * 2
    outcome = lowered(captured, "insert-fake-quant{keep=[first, second, mul]}, calibrate, lower-integers{edges=inputs}")
    assert any("no quantizer stands behind this input" in skip.why for skip in outcome.steps[-1].result.skipped)
    assert outcome.graph.inputs[0].dtype == torch.float32


def test_unknown_edges_are_refused():
    for name in ("insert-fake-quant", "lower-integers"):
        with pytest.raises(UsageError, match="'edges' is 'both'; expected float, inputs, outputs or integer"):
            planish.Pipeline.parse(f"{name}{{edges=both}}")
