"""Whole models in integers: what is compiled gives the bytes that the integer graph gives in PyTorch."""

import shutil
from collections.abc import Callable
from functools import cache

import pytest
import torch
from models import EXAMPLES
from torch import nn
from torch.nn import functional as F

import planish
from planish.backends.target import Target
from planish.backends.tvm.build import compile_model
from planish.backends.tvm.relax import to_relax
from planish.ir.graph import Graph
from planish.ir.specialize import fix_batch

RECIPE = "fold-batch-norm, insert-fake-quant{{activations={}}}, calibrate, lower-integers"


class EveryKernel(nn.Module):
    """Each integer op that has a kernel, on few channels: products of all kinds, sums, means, tables, a concat."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 18, 3, 2, 1)
        self.wide = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.grouped = nn.Conv2d(18, 18, 3, padding=2, dilation=2, groups=3)
        self.point = nn.Conv2d(18, 18, 1)
        self.squeeze = nn.Conv2d(18, 18, 1)
        self.after = nn.Conv2d(36, 20, 3, padding=1)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu6(self.stem(x))
        y = F.hardswish(self.wide(x))
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        y = F.relu(self.point(y) + x)
        z = F.max_pool2d(self.grouped(y) - x, 3, 1, 1)
        z = self.after(F.pad(torch.cat([y, z], 1), (1, 0, 0, 1)))
        z = F.avg_pool2d(F.leaky_relu(z), 3, 1, 1)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(z, 1), 1))


class EveryPlainOp(nn.Module):
    """Integer ops on shapes that have no kernel: TVM's own loops compute them."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(6, 8, 3, padding=1)
        self.spread = nn.ConvTranspose2d(8, 8, 2, 2, groups=2)
        self.conv = nn.Conv2d(8, 8, 3)
        self.mix = nn.Linear(8, 8)

    def forward(self, x):
        x = torch.relu(self.line(x)).unflatten(2, (4, 4))
        x = F.interpolate(torch.relu(self.spread(x)), size=(7, 9), mode="bilinear")
        x = F.interpolate(self.conv(x), scale_factor=2, mode="nearest")
        x = torch.relu(self.mix(x.flatten(2).transpose(1, 2)))
        return self.mix(x * x + x)


@cache
def integer_graph(
    make: Callable[[], nn.Module], shape: tuple[int, ...], activations: str
) -> tuple[Graph, torch.Tensor]:
    """Made once; tests only read it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    captured = planish.capture(model, (x,))
    outcome = planish.Pipeline.parse(RECIPE.format(activations)).run(captured, planish.Context(data=[x]))
    assert outcome.steps[-1].result.details["integer_macs"] == 1.0
    return outcome.graph, x


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_every_kernel_gives_the_bytes_of_the_graph(activations):
    graph, x = integer_graph(EveryKernel, (3, 18, 17), activations)
    target = Target.get("local")
    model = to_relax(graph, target)  # the batch is known at run time
    assert model.others == {"flatten": 1, "cat": 1}  # nothing is left to TVM's own loops
    assert torch.equal(compile_model(model, target)(x)[0], graph(x))
    assert model.integers == 7


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_what_has_no_kernel_gives_the_bytes_of_the_graph(activations):
    graph, x = integer_graph(EveryPlainOp, (6, 16), activations)
    target, graph = Target.get("local"), fix_batch(graph, 4)
    assert torch.equal(compile_model(to_relax(graph, target), target)(x)[0], graph(x))


def test_linear_layers_of_many_dims_keep_a_symbolic_batch():
    """[batch, tokens, features]: the number of rows is known at run time."""

    def tokens():
        return nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 5))

    graph, x = integer_graph(tokens, (3, 7), "int8")
    compiled = compile_model(to_relax(graph, Target.get("local")), Target.get("local"))
    for batch in (1, 4):
        assert torch.equal(compiled(x[:batch])[0], graph(x[:batch]))
    assert str(graph.inputs[0].shape) == "('b', 3, 7)"


def test_a_network_gives_the_bytes_of_the_graph():
    graph, x = integer_graph(*EXAMPLES["mobilenet"], "int8")
    compiled = planish.compile(graph, recipe="", batch=4)
    assert torch.equal(compiled(x), graph(x))
    assert compiled.report.exact
    assert compiled.report.int8_kernels == f"{compiled.report.products} of {compiled.report.products}"


# Unicorn has no smmla.
QEMU = pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")), reason="qemu-user is not installed"
)
SMMLA = pytest.param("graviton3", marks=QEMU)
QEMU_32 = pytest.mark.skipif(
    not (shutil.which("qemu-arm") or shutil.which("qemu-arm-static")), reason="Unicorn's part here has 64 bits"
)
VMULL = pytest.param("raspberry-pi-2", marks=QEMU_32)


# Targets of every arithmetic that this machine or the emulator runs: vpmaddwd, smull, sdot, smmla, vmull.
@pytest.mark.parametrize("target", ["x86-64-v3", "raspberry-pi-4", "raspberry-pi-5", SMMLA, VMULL])
def test_a_c_program_gives_the_bytes_of_the_graph(target):
    """The bundle's own golden pair is verified with tolerance zero."""
    graph, x = integer_graph(EveryKernel, (3, 18, 17), "int8")
    compiled = planish.compile(graph, recipe="", batch=4, target=target)
    assert torch.equal(compiled(x), graph(x))


def rests() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 21), nn.ReLU(), nn.Linear(21, 3), nn.ReLU(), nn.Linear(3, 9))


@QEMU
@pytest.mark.parametrize("rows", [1, 5])
def test_smmla_takes_rows_in_pairs_and_the_last_one_alone(rows):
    """Reductions of 13 and 3: less than the eight steps of an instruction, and a rest behind them."""
    graph, x = integer_graph(rests, (13,), "int8")
    x = torch.cat([x, -3 * x])[:rows]  # some of it saturates
    compiled = planish.compile(graph, recipe="", batch=rows, target="graviton3")
    assert torch.equal(compiled(x), graph(x))
    instructions = [layer["instruction"] for layer in compiled.report.layers if "dense" in layer["kernel"]]
    assert instructions == ["smmla"] * 3


def test_a_bundle_of_integers_is_verified_to_the_byte(tmp_path):
    graph, x = integer_graph(*EXAMPLES["mlp"], "int8")
    bundle = planish.compile(graph, recipe="", batch=4).save(tmp_path / "mlp.planish")
    loaded = planish.load(bundle)
    assert torch.equal(loaded(x), graph(x))
    assert (loaded.manifest.golden.rtol, loaded.manifest.golden.atol) == (0.0, 0.0)
