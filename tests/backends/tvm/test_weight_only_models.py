"""Models with packed weights, built for this machine and for boards: numbers of the graph, bytes as promised."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from example_graphs import made_once
from torch import nn

import planish
from planish.backends.target import Target
from planish.backends.tvm.build import compile_model
from planish.backends.tvm.relax import to_relax
from planish.ir.errors import BuildError
from planish.ir.graph import Graph
from planish.ir.specialize import fix_batch

PACKED = "insert-fake-quant{{activations=none, {}}}, calibrate{{data=none}}, lower-weights"
# What kernels are called, bytes of a weight, and scales: one for each of 64 + 32 outputs, or 8 of its inputs, or none.
KINDS = {
    "weight-bits=8": ("int8", 1, 64 + 32),
    "weight-bits=4": ("int4", 0.5, 64 + 32),
    "weight-bits=4, weight-group=8": ("int4", 0.5, 64 * 4 + 32 * 8),
    "weights=float16": ("float16", 2, 0),
    "weights=bfloat16": ("bfloat16", 2, 0),
}


class Tokens(nn.Module):
    """Linear layers over the last dim, with what fuses behind them."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(32, 64)
        self.narrow = nn.Linear(64, 32, bias=False)

    def forward(self, x):
        return x + self.narrow(torch.nn.functional.gelu(self.wide(x)))


@made_once
def tokens(*shape: int, **capture) -> Graph:
    return planish.capture(Tokens().eval(), (torch.randn(shape),), **capture)


def packed(options: str, *shape: int, **capture) -> tuple[Graph, torch.Tensor]:
    outcome = planish.Pipeline.parse(PACKED.format(options)).run(tokens(*shape, **capture))
    assert outcome.steps[-1].result.changed == 2
    return outcome.graph, torch.randn(shape)


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """float32 sums of 64 products of order 1 in another order, and a gelu of absolute error 1.5e-7."""
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", KINDS)
def test_numbers_and_bytes(options):
    graph, x = packed(options, 3, 32)
    compiled = planish.compile(graph, recipe="", batch=3)
    close(compiled(x), graph(x))
    kind, each, scales = KINDS[options]
    # Two layers of 2048 weights each, and biases (zeros where there are none) for 64 and 32 outputs.
    assert compiled.report.facts["weight_bytes"] == 2 * 2048 * each + 4 * (scales + 64 + 32)
    assert [layer["kernel"].partition(" weights")[0] for layer in compiled.report.layers] == [f"dense, {kind}"] * 2
    assert compiled.report.others == {} and (compiled.report.products, compiled.report.integers) == (2, 0)


@pytest.mark.parametrize("options", ["weight-bits=4, weight-group=8", "weights=bfloat16"])
def test_more_dims_are_rows(options):
    graph, x = packed(options, 2, 5, 32)
    compiled = planish.compile(graph, recipe="", batch=2)
    close(compiled(x), graph(x))
    assert all(layer["kernel"].startswith("dense, ") for layer in compiled.report.layers)


@pytest.mark.parametrize("rows", [(3,), (3, 5)], ids=str)
def test_a_batch_known_at_run_time(rows):
    graph, _ = packed("weight-bits=4, weight-group=8", *rows, 32)
    target = Target.get("local")
    model = to_relax(graph, target)
    assert [layer.kernel.split(",")[1] for layer in model.layers] == [" int4 weights"] * 2
    compiled = compile_model(model, target)
    for batch in (1, 7):
        x = torch.randn(batch, *rows[1:], 32, generator=torch.Generator().manual_seed(2))
        close(compiled(x)[0], graph(x))


def test_where_float16_has_no_instruction_weights_are_float32():
    graph, _ = packed("weights=float16", 3, 32)
    sse = replace(Target.get("x86-64-v3"), cpu="x86-64", features=(), lanes=4)
    model = to_relax(fix_batch(graph, 3), sse)
    assert all(layer.kernel.startswith("dense, tile") for layer in model.layers) and len(model.layers) == 2
    assert model.weight_bytes == 2 * 2048 * 4 + 4 * (64 + 32)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    if Target.get("local").triple.startswith("x86_64"):
        close(compile_model(model, sse)(x)[0], graph(x))


QEMU_32 = pytest.mark.skipif(
    not (shutil.which("qemu-arm") or shutil.which("qemu-arm-static")), reason="Unicorn's part here has 64 bits"
)


# NEON in the emulator; AVX2 where this processor or the emulator has it.
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("raspberry-pi-4", "weight-bits=4, weight-group=8"),
        ("raspberry-pi-4", "weights=float16"),
        pytest.param("raspberry-pi-2", "weight-bits=4, weight-group=8", marks=QEMU_32),
        pytest.param("raspberry-pi-2", "weights=float16", marks=QEMU_32),
        pytest.param("raspberry-pi-2", "weights=bfloat16", marks=QEMU_32),
        ("x86-64-v3", "weight-bits=8"),
    ],
)
def test_a_c_program(target, options):
    graph, x = packed(options, 3, 32)
    compiled = planish.compile(graph, recipe="", batch=3, target=target)
    close(compiled(x), graph(x))
    _, each, scales = KINDS[options]
    wanted = 2 * 2048 * each + 4 * (scales + 64 + 32)
    assert wanted <= compiled.report.facts["weight_bytes"] < wanted + 6 * 64  # arrays start at multiples of 64


def test_a_bundle(tmp_path):
    graph, x = packed("weight-bits=4", 3, 32)
    loaded = planish.load(planish.compile(graph, recipe="", batch=3).save(tmp_path / "packed.planish"))
    close(torch.as_tensor(np.asarray(loaded(x))), graph(x))


def test_there_is_no_onnx_form(tmp_path):
    from planish.backends.onnx import export_onnx

    graph, _ = packed("weight-bits=4", 3, 32)
    with pytest.raises(BuildError, match=r"planish\.linear_weight_only.*has no ONNX form"):
        export_onnx(graph, tmp_path / "packed.onnx")
