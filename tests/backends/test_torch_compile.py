"""torch.compile(model, backend="planish"): the same answers as PyTorch, whatever the model holds."""

import logging
import subprocess
import sys

import efficientnet
import pytest
import torch
from torch import nn
from torch_compile_cases import Calls, Convolutions, TransformerBlock, eager_ops, run

import planish
from planish.backends.target import Target
from planish.ir.errors import UsageError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_the_backend_is_found_without_importing_planish():
    script = (
        "import sys, torch\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()\n"
        "assert 'planish' not in sys.modules\n"
        "compiled = torch.compile(model, backend='planish')\n"
        "x = torch.ones(2, 4)\n"
        "with torch.inference_mode():\n"
        "    assert torch.allclose(compiled(x), model(x), atol=1e-6)\n"
        "import planish\n"
        "(report,) = planish.reports()\n"
        "assert report.facts['regions'] == 1 and not report.eager, str(report)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: Convolutions(), (2, 3, 20, 20)),
        (lambda: nn.Sequential(nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 7)).eval(), (3, 12)),
        (lambda: TransformerBlock(), (2, 6, 32)),
    ],
    ids=["convolutions", "mlp", "transformer block"],
)
def test_a_whole_model_goes_to_tvm(model, shape):
    _, (report,) = run(model(), torch.randn(shape))
    assert not report.eager and report.facts["regions"] == 1
    assert report.layers


@pytest.mark.parametrize(
    ("between", "op"),
    [
        (lambda y: torch.fft.fft2(y).real, "aten.fft_fft2.default"),
        (torch.special.bessel_j0, "aten.special_bessel_j0.default"),
        (lambda y: torch.linalg.qr(y).R, "aten.linalg_qr.default"),
        (lambda y: y.double().exp().float(), "aten.exp.default"),
    ],
    ids=["fft", "special", "linalg", "float64"],
)
def test_an_op_that_tvm_cannot_take_stays_in_pytorch(between, op, caplog):
    model = Calls(lambda m, x: m.last(between(m.first(x))), first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    with caplog.at_level(logging.WARNING, "planish"):
        _, (report,) = run(model, torch.randn(8, 8))
    assert op in {name for name, _ in report.eager}
    assert all(line.startswith("test_torch_compile.py:") for _, line in report.eager)
    assert report.facts["regions"] == 2 and len(report.layers) == 2
    assert op in caplog.text


def test_a_custom_autograd_function():
    class Signed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * x.abs()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    model = Calls(lambda m, x: m.last(Signed.apply(m.first(x))), first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    _, reports = run(model, torch.randn(3, 8))
    assert sum(len(report.layers) for report in reports) == 2


def test_sizes_that_depend_on_data():
    model = Calls(lambda m, x: (m.first(x)[x.sum(1) > 0].exp() + 1, torch.nonzero(x > 0)), first=nn.Linear(8, 8))
    run(model, torch.randn(6, 8))


def test_a_graph_break_gives_two_regions():
    def branch(m, x):
        y = m.first(x)
        return m.last(y * 2 if y.sum() > 0 else y - 1)

    model = Calls(branch, first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    _, reports = run(model, torch.randn(3, 8))
    assert len(reports) == 2 and all(report.facts["regions"] == 1 for report in reports)


def test_several_inputs_keywords_and_structured_outputs():
    model = Calls(
        lambda m, x, y, scale=2.0: {"sum": m.first(x) + y, "more": [(y * scale, x.shape[0]), x]}, first=nn.Linear(8, 8)
    )
    x, y = torch.randn(3, 8), torch.randn(3, 8)
    compiled, _ = run(model, x, y)
    run(model, x, y, scale=0.5, compiled=compiled)
    with torch.no_grad():
        assert compiled(x, y)["more"][1] is x


def test_an_index_out_of_range_is_an_error():
    model = Calls(lambda m, i: m.first(m.table(i)), table=nn.Embedding(10, 8), first=nn.Linear(8, 8))
    compiled, _ = run(model, torch.tensor([[1, 9]]))
    with torch.no_grad(), pytest.raises(IndexError):
        compiled(torch.tensor([[1, 10]]))


def test_other_dtypes_and_autocast_stay_in_pytorch():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    _, reports = run(model.double(), torch.randn(2, 8, dtype=torch.float64))
    assert "torch.float64" in " ".join(reports[0].reasons)
    with torch.autocast("cpu", torch.bfloat16):
        _, reports = run(model.float(), torch.randn(2, 8))
    assert "autocast" in " ".join(reports[0].reasons)


def test_a_dry_run_prints_coverage_and_builds_nothing(capsys):
    model = Calls(lambda m, x: m.last(torch.fft.fft2(m.first(x)).real), first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    compiled = torch.compile(model, backend="planish", options={"dry_run": True})
    _, (report,) = run(model, torch.randn(8, 8), compiled=compiled)
    printed = capsys.readouterr().out
    assert "goes to TVM" in printed and "linear" in printed and "2" in printed
    assert "aten.fft_fft2.default" in printed and "test_torch_compile.py:" in printed
    assert report.layers == () and report.facts == {"code": "PyTorch"}
    assert "aten.fft_fft2.default" in eager_ops([report])


def test_a_recipe_is_followed():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()
    compiled = torch.compile(model, backend="planish", options={"recipe": "prune-channels{ratio=0.5}"})
    with torch.no_grad():
        compiled(torch.randn(1, 3, 10, 10))
    report = planish.reports()[-1]
    assert report.after["params"] < report.before["params"]
    assert report.recipe == "prune-channels{ratio=0.5}"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"options": {"recipee": ""}}, "unknown option 'recipee'; did you mean 'recipe'?"),
        ({"options": {"recipe": "fold-batchnorm"}}, "did you mean 'fold-batch-norm'?"),
        ({"options": {"target": "raspberry-pi-4"}}, "expected 'local'"),
        ({"options": {"target": "pi"}}, "unknown target 'pi'"),
        ({"options": {"recipe": "insert-fake-quant, calibrate"}}, "no data was given"),
        ({"mode": "max-autotune"}, "is a mode of Inductor"),
    ],
    ids=["option", "pass", "board", "target", "data", "mode"],
)
def test_wrong_options_are_errors(keywords, message):
    compiled = torch.compile(nn.Linear(4, 4).eval(), backend="planish", **keywords)
    with torch.no_grad(), pytest.raises(UsageError) as caught:
        compiled(torch.ones(1, 4))
    assert message in str(caught.value)


def test_code_that_disagrees_with_pytorch_is_not_used(monkeypatch):
    from planish.backends.tvm.emit import tvm_ops

    def wrong(emitter, node, read):
        return emitter.builder.emit(read(node.args[0]))  # the identity in place of erf

    monkeypatch.setitem(tvm_ops.CONVERTERS, "erf", wrong)
    model = Calls(lambda m, x: m.first(x).erf(), first=nn.Linear(8, 8))
    _, (report,) = run(model, torch.randn(3, 8))
    assert "differs from PyTorch's" in " ".join(report.reasons)


def test_efficientnet_lite0_with_its_weights():
    model = efficientnet.model()
    compiled = torch.compile(model, backend="planish")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)  # fifty layers of sums
    report = planish.reports()[-1]
    assert not report.eager
    products = [layer for layer in report.layers if "mean" not in layer["kernel"]]
    assert sum("vfmadd" in layer["instruction"] for layer in products) >= 35 or Target.get("local").machine != "x86_64"
