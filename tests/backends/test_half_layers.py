"""float16 on an emulated core with half-precision arithmetic, against float64; and on machines without it."""

import onnx
import pytest
import torch
from example_graphs import example_graph
from models import efficientnet, mobilenet, resnet
from torch import nn
from torch.nn import functional as F

import planish
from planish.backends.bundle import Bundle
from planish.backends.device import Device
from planish.backends.onnx import export_onnx
from planish.backends.target import Target
from planish.ir.errors import UsageError

from .test_integer_layers import CHANNELS, HEIGHT, WIDTH, SideBySide, drawn_layers

# Of the largest result. A float16 has 11 bits, and sums of up to 200 products add more errors of 2**-12 of what they
# pass through, layer after layer. A wrong tap, channel or bias is off by far more.
OFF = 1 / 64
RECIPE = "canonicalize, fold-batch-norm, to-half"
PRODUCTS = ("direct", "pointwise", "depthwise", "expand", "dense", "winograd", "transposed")


def compiled_half(model: nn.Module, x: torch.Tensor, target: str):
    with torch.random.fork_rng():
        return planish.compile(model.eval(), (x,), recipe=RECIPE, batch=len(x), target=target)


def assert_near(got, wanted) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        assert float((one.double() - other).abs().max()) < OFF * float(other.abs().max())


def in_float64(model: nn.Module, x: torch.Tensor):
    with torch.no_grad():
        wanted = model.double()(x.double())
    model.float()
    return wanted if isinstance(wanted, tuple) else (wanted,)


def check(model: nn.Module, x: torch.Tensor, target: str = "raspberry-pi-5"):
    compiled = compiled_half(model, x, target)
    got = compiled(x)
    assert_near(got if isinstance(got, tuple) else (got,), in_float64(model, x))
    return compiled


def test_drawn_layers():
    """Windows, strides, paddings, dilations and groups of any kind, tails of channels and pixels, activations."""

    @drawn_layers(2)
    def each(drawn, seed):
        with torch.random.fork_rng():
            model = SideBySide(drawn, seed)
            x = torch.randn(2, CHANNELS, HEIGHT, WIDTH)
        check(model, x)

    each()


class Rest(nn.Module):
    """What the other models leave out: pooling, transposed convs, products with factors per channel, activations that
    are computed in float32, plain linear layers with a residual, and a value that is read in both precisions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 20, 3, 2, 1)
        self.same = nn.Conv2d(20, 20, 3, padding=1)
        self.up = nn.ConvTranspose2d(20, 12, 3, 2, 1, output_padding=1)
        self.factor = nn.Conv2d(20, 20, 1)
        self.inner, self.norm, self.head = nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 21)

    def forward(self, x):
        y = F.silu(self.first(x))
        pooled = F.avg_pool2d(y, 3, 2, 1, count_include_pad=False) + F.max_pool2d(y, 3, 2, 1)
        y = y * torch.sigmoid(self.factor(F.adaptive_avg_pool2d(y, 1))) + F.gelu(self.same(y))
        up = torch.cat([F.tanh(self.up(y)), F.hardswish(self.up(y))], 1)
        mean = self.up(y).mean((2, 3))
        return up, pooled, self.head(self.norm(mean + torch.relu(self.inner(mean))))


@pytest.mark.parametrize(("make", "size"), [(Rest, 21), (resnet, 16), (mobilenet, 16), (efficientnet, 16)])
def test_models_compute_in_half(make, size, tmp_path):
    compiled = check(make(), torch.randn(2, 3, size, size))
    report = compiled.report
    assert report.half == report.products
    products = [row for row in report.layers if any(word in row["kernel"] for word in PRODUCTS)]
    assert products
    for row in products:
        # Exponentials are polynomials in float32: a short product has fewer multiply-adds than its silu.
        by_lane = ("fmla v.8h", "fmla v.4s") if make in (Rest, efficientnet) else ("fmla v.8h",)
        assert row["kernel"].startswith("fp16 ") and row["instruction"] in by_lane, row
    assert any(row["instruction"] == "fmla v.8h" for row in products)
    bundle = Bundle.open(compiled.save(tmp_path / "half.planish"))
    assert Device.get("emulator").verify(bundle).passed


@pytest.mark.skipif(Target.get("local").has_half, reason="this machine has half-precision arithmetic")
def test_this_machine_computes_half_layers_without_kernels_of_ours():
    report = check(mobilenet(), torch.randn(1, 3, 32, 32), "local").report
    assert not any(row["kernel"].startswith("fp16 ") for row in report.layers)


def test_an_onnx_file_computes_in_half_too(tmp_path):
    graph = planish.Pipeline.parse(RECIPE).run(example_graph("mobilenet")).graph
    exported = export_onnx(graph, tmp_path / "half.onnx")  # which compares it with PyTorch
    assert not exported.equal
    weights = onnx.load(tmp_path / "half.onnx").graph.initializer
    assert sum(w.data_type == onnx.TensorProto.FLOAT16 and len(w.dims) == 4 for w in weights) >= 8


@pytest.mark.parametrize("target", ["raspberry-pi-4", "raspberry-pi-2", "x86-64-v4", "cuda-sm80"])
def test_boards_without_half_arithmetic_are_refused(target):
    with pytest.raises(UsageError, match=r"float16.*raspberry-pi-5, graviton3, graviton4, cortex-a710"):
        planish.compile(example_graph("mobilenet"), recipe=RECIPE, target=target)
