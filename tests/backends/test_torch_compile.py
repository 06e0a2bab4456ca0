"""torch.compile(model, backend="planish"): the same answers as PyTorch, whatever the model holds."""

import logging
import subprocess
import sys
import threading
from typing import Any

import efficientnet
import pytest
import torch
from torch import Tensor, nn

import planish
from planish.backends import torch_compile
from planish.ir.errors import UsageError

# Sums in another order: float32 has seven digits, and these models add up a few hundred terms.
TOLERANCE: Any = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Calls(nn.Module):
    """A model that is one function of its layers and inputs."""

    def __init__(self, function, **layers: nn.Module):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.eval()

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 5)
        nn.init.uniform_(self.norm1.get_buffer("running_var"), 0.5, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = nn.functional.relu6(self.conv2(x), inplace=True) + x
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class TransformerBlock(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def run(model: nn.Module, *args, compiled=None, **kwargs):
    """Compile, run without gradients, compare with PyTorch; gives what was compiled and its new reports."""
    before = len(planish.reports())
    compiled = torch.compile(model, backend="planish") if compiled is None else compiled
    with torch.no_grad():
        actual, expected = compiled(*args, **kwargs), model(*args, **kwargs)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    return compiled, planish.reports()[before:]


def eager_ops(reports: list[planish.Report]) -> set[str]:
    return {op for report in reports for op, _ in report.eager}


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


def test_in_place_ops_on_a_value_of_its_own():
    model = Calls(lambda m, x: m.last(m.first(x).relu_().add_(1).mul_(2)), first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    _, (report,) = run(model, torch.randn(3, 8))
    assert not report.eager


def test_writes_into_shared_memory_stay_in_pytorch():
    def assign(m, x):
        y = m.first(x)
        y[:, 0] = 3
        return m.last(y)

    model = Calls(assign, first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    _, (report,) = run(model, torch.randn(3, 8))
    assert "writes in place" in " ".join(report.reasons)
    assert "aten.linear.default" in eager_ops([report])


def test_a_write_into_an_input_reaches_the_caller():
    model = Calls(lambda m, x: m.first(x.add_(1)), first=nn.Linear(8, 8))
    x = torch.zeros(3, 8)
    with torch.no_grad():
        torch.compile(model, backend="planish")(x)
    assert torch.equal(x, torch.ones(3, 8))


def test_returned_views_share_memory_as_in_pytorch():
    model = Calls(lambda m, x: (x.view(4, 2, 4), (y := m.first(x)), y.t()), first=nn.Linear(8, 8))
    x = torch.randn(4, 8)
    with torch.no_grad():
        of_input, value, transposed = torch.compile(model, backend="planish")(x)
    assert of_input.data_ptr() == x.data_ptr()
    assert value.data_ptr() == transposed.data_ptr() and not transposed.is_contiguous()


def test_outputs_are_not_overwritten_by_the_next_call():
    model = Convolutions()
    compiled, _ = run(model, torch.randn(2, 3, 16, 16))
    with torch.no_grad():
        first = compiled(torch.ones(2, 3, 16, 16))
        kept = first.clone()
        first.add_(0)  # outputs are ordinary tensors that may be written to
        for seed in range(3):
            compiled(torch.full((2, 3, 16, 16), float(seed)))
    assert torch.equal(first, kept)


def test_a_constant_output_is_new_at_each_call():
    model: Any = Calls(lambda m, x: (m.first(x), m.first.weight * 2), first=nn.Linear(4, 4))
    compiled = torch.compile(model, backend="planish")
    with torch.no_grad():
        compiled(torch.ones(2, 4))[1].zero_()
        torch.testing.assert_close(compiled(torch.ones(2, 4))[1], model.first.weight * 2, rtol=0, atol=0)


def test_a_new_batch_size_needs_one_more_build():
    model = Convolutions()
    compiled, first = run(model, torch.randn(2, 3, 16, 16))
    _, second = run(model, torch.randn(5, 3, 16, 16), compiled=compiled)
    _, third = run(model, torch.randn(9, 3, 16, 16), compiled=compiled)
    assert [len(reports) for reports in (first, second, third)] == [1, 1, 0]


def test_new_image_sizes_are_built_as_they_come():
    model = Convolutions()
    compiled = torch.compile(model, backend="planish", dynamic=True)
    for size in (16, 18, 16):
        run(model, torch.randn(2, 3, size, size), compiled=compiled)


def test_inputs_that_are_not_contiguous_or_not_aligned():
    model = Calls(lambda m, x: (m.first(x), x.exp() + x.tanh()), first=nn.Linear(8, 8))
    compiled, _ = run(model, torch.randn(8, 5).t())
    run(model, torch.randn(41)[1:].view(5, 8), compiled=compiled)


def test_changed_weights_are_seen_at_once_and_compiled_when_they_settle():
    model = Convolutions()
    x = torch.randn(2, 3, 16, 16)
    compiled, _ = run(model, x)
    model.load_state_dict({name: value * 0.9 for name, value in model.state_dict().items()})
    built = [len(run(model, x, compiled=compiled)[1]) for _ in range(torch_compile.SETTLED_CALLS + 1)]
    assert built == [0] * (torch_compile.SETTLED_CALLS - 1) + [1, 0]
    model.head.weight.data = torch.zeros(5, 16)
    run(model, x, compiled=compiled)


def test_weights_that_change_at_every_call_are_never_compiled_again():
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    compiled, _ = run(model, torch.randn(2, 8))
    for _ in range(6):
        with torch.no_grad():
            model[0].weight.mul_(0.9)
        assert run(model, torch.randn(2, 8), compiled=compiled)[1] == []


def test_two_models_of_one_class_keep_their_own_weights():
    first, second = TransformerBlock(), TransformerBlock()
    x = torch.randn(1, 4, 32)
    compiled = [torch.compile(model, backend="planish") for model in (first, second)]
    for model, fast in zip((first, second, first), (*compiled, compiled[0]), strict=True):
        run(model, x, compiled=fast)


def test_a_training_step_gives_the_gradients_of_pytorch():
    model: Any = Convolutions().train()
    compiled = torch.compile(model, backend="planish")
    x, state = torch.randn(4, 3, 16, 16), {k: v.clone() for k, v in model.state_dict().items()}
    compiled(x).square().sum().backward()
    actual = {name: p.grad.clone() for name, p in model.named_parameters()}
    statistics = model.norm1.running_mean.clone()
    model.zero_grad()
    model.load_state_dict(state)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad, rtol=0, atol=0)  # the same code computes both
    assert torch.equal(statistics, model.norm1.running_mean)
    assert "a gradient may be needed" in " ".join(planish.reports()[-1].reasons)


def test_training_mode_without_gradients_stays_in_pytorch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    x, before = torch.randn(2, 3, 8, 8), len(planish.reports())
    with torch.no_grad():
        torch.compile(model, backend="planish")(x)
    assert model[1].num_batches_tracked == 1
    assert "training mode" in " ".join(planish.reports()[before].reasons)


def test_random_calls_draw_from_pytorch():
    model = Calls(lambda m, x: m.first(x) + torch.rand(3, 8), first=nn.Linear(8, 8))
    compiled, x = torch.compile(model, backend="planish"), torch.randn(3, 8)
    with torch.no_grad():
        compiled(x)
        torch.manual_seed(5)
        actual = compiled(x)
        torch.manual_seed(5)
        torch.testing.assert_close(actual, model(x), **TOLERANCE)


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


def test_weights_made_in_inference_mode_stay_in_pytorch():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
        before = len(planish.reports())
        torch.compile(model, backend="planish")(torch.ones(2, 8))
    assert "inference_mode" in " ".join(planish.reports()[before].reasons)


def test_calls_from_two_threads():
    model = Convolutions()
    compiled, _ = run(model, torch.randn(2, 3, 16, 16))
    inputs = [torch.full((2, 3, 16, 16), float(i)) for i in range(2)]
    wrong = []

    def work(x: Tensor) -> None:
        with torch.no_grad():
            expected = model(x)
            wrong.extend(i for i in range(20) if not torch.allclose(compiled(x), expected, **TOLERANCE))

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


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
    assert not report.eager and len(report.layers) > 30
