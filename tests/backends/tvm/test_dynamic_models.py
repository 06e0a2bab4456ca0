"""Dynamic quantization compiled: equal to PyTorch where no function of floats stands between."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import planish
from planish.backends.onnx import export_onnx
from planish.backends.tvm.emit import dynamic_lstm
from planish.ir.errors import BuildError


def layers(*widths: int) -> tuple[planish.Graph, torch.Tensor]:
    """Linear layers with relu between: all that is computed is exact."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pairs = [(nn.Linear(a, b, bias=b != 33), nn.ReLU()) for a, b in pairwise(widths)]
        model = nn.Sequential(*[module for pair in pairs for module in pair][:-1]).eval()
        x = torch.randn(3, 4, widths[0])
    return planish.capture(model, (x,)), x


# With VNNI where this machine has it, without it, and on ARM without the dot product.
@pytest.mark.parametrize("target", ["local", "x86-64-v3", "raspberry-pi-4"])
def test_linear_layers_are_equal(target):
    graph, x = layers(24, 33, 8)
    compiled = planish.compile(graph, recipe="quantize-dynamic", batch=3, target=target)
    for value in (x, x * 1e-20, x.abs() + 3, x * 0):
        assert torch.equal(compiled(value), compiled.graph(value))
    kernels = [layer["kernel"] for layer in compiled.report.layers if layer["kernel"].startswith("int8 dense")]
    assert len(kernels) == 2 and compiled.report.int8_kernels == "2 of 2"


def test_a_batch_that_is_known_at_run_time():
    graph, x = layers(24, 16, 8)
    compiled = planish.compile(graph, recipe="quantize-dynamic", batch="dynamic")
    for count in (1, 2, 3):
        assert torch.equal(compiled(x[:count]), compiled.graph(x[:count]))


def test_a_target_without_integer_kernels_has_the_same_sums(monkeypatch):
    from planish.backends.tvm import relax

    monkeypatch.setattr(relax, "integers", lambda *_: None)
    graph, x = layers(24, 16, 8)
    compiled = planish.compile(graph, recipe="quantize-dynamic", batch=3)
    assert not any("int8" in layer["kernel"] for layer in compiled.report.layers)
    assert torch.equal(compiled(x), compiled.graph(x))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(12, 16, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.lstm(x)


def tagger(steps: int = 2) -> tuple[planish.Graph, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Tagger().eval(), torch.randn(2, steps, 12)
    return planish.capture(model, (x,)), x


def test_an_lstm_with_all_its_steps():
    graph, x = tagger()
    compiled = planish.compile(graph, recipe="quantize-dynamic", batch=2)
    assert any("int8 dense" in layer["kernel"] for layer in compiled.report.layers) and not compiled.report.eager
    outputs, (hidden, cells) = compiled(x)
    wanted, (last, last_cells) = compiled.graph(x)
    for found, expected in ((outputs, wanted), (hidden, last), (cells, last_cells)):
        # Sigmoid and tanh differ in float32 rounding, which can move a state by one of 255 steps.
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def test_a_long_sequence_stays_in_pytorch(monkeypatch):
    monkeypatch.setattr(dynamic_lstm, "MOST_STEPS", 3)
    graph, x = tagger()
    compiled = planish.compile(graph, recipe="quantize-dynamic", batch=2)
    assert [op for op, _ in compiled.report.eager] and "lstm_dynamic" in str(compiled.report.eager)
    assert torch.equal(compiled(x)[0], compiled.graph(x)[0])
    with pytest.raises(BuildError, match="2 layers and directions take 2 steps each, more than 3 in all"):
        planish.compile(graph, recipe="quantize-dynamic", batch=2, target="x86-64-v3")


def test_onnx_and_cuda_say_no(tmp_path):
    graph, _ = layers(8, 4)
    dynamic = planish.Pipeline.parse("quantize-dynamic").run(graph).graph
    with pytest.raises(BuildError, match=r"planish\.linear_dynamic.*has no ONNX form"):
        export_onnx(dynamic, tmp_path / "model.onnx")
    with pytest.raises(BuildError, match=r"1 calls have no CUDA form: 'planish\.linear_dynamic"):
        planish.compile(graph, recipe="quantize-dynamic", batch=3, target="cuda-sm80")
