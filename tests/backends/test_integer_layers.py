"""Layers drawn by hypothesis, side by side in one model, through everything that runs integers: equal, not close."""

import math
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx_cases import SATURATES
from torch import nn
from torch.nn import functional as F

import planish
from planish.backends.onnx import export_onnx

CHANNELS, HEIGHT, WIDTH = 12, 9, 11
FUNCTIONS = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "tanh": torch.tanh}
RECIPE = "insert-fake-quant{{activations={}}}, calibrate, lower-integers"


@dataclass(frozen=True)
class Layer:
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    function: str
    spread: float  # decades between the largest and the smallest channel's weights
    bias: float


@st.composite
def layers(draw) -> Layer:
    """Any window that fits the padded image; groups that divide both channel counts, odd ones too."""
    groups = draw(st.sampled_from([1, 1, 2, 3, 4, 6, 12]))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(2))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(2))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    outputs = groups * draw(st.integers(1, 3 if groups > 1 else 33))
    function = draw(st.sampled_from(sorted(FUNCTIONS)))
    spread, bias = draw(st.sampled_from([0.0, 2.0, 6.0])), draw(st.sampled_from([0.0, 1.0, 50.0]))
    stride: tuple[int, int] = draw(pair)
    return Layer(outputs, kernel, stride, padding, dilation, groups, function, spread, bias)  # type: ignore[arg-type]


class SideBySide(nn.Module):
    """Each layer with its function and a 1x1 conv behind it, which reads what the first one stored."""

    def __init__(self, drawn: list[Layer], seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.functions = [FUNCTIONS[layer.function] for layer in drawn]
        self.first = nn.ModuleList(self._conv(layer) for layer in drawn)
        self.second = nn.ModuleList(nn.Conv2d(layer.outputs, 5, 1) for layer in drawn)

    def forward(self, x):
        return tuple(
            second(function(first(x)))
            for first, second, function in zip(self.first, self.second, self.functions, strict=True)
        )

    @staticmethod
    def _conv(layer: Layer) -> nn.Conv2d:
        conv = nn.Conv2d(
            CHANNELS, layer.outputs, layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        decades = torch.linspace(0, -layer.spread, layer.outputs).reshape(-1, 1, 1, 1)
        with torch.no_grad():
            conv.weight.mul_(10**decades)
            conv.bias.copy_(torch.randn(layer.outputs) * layer.bias)  # type: ignore[union-attr]
            conv.weight[-1] = 0.0  # a dead channel
        return conv


def integer_graph(drawn: list[Layer], activations: str, seed: int) -> tuple[planish.Graph, torch.Tensor]:
    """Calibrated on half of the input's range: the other half saturates."""
    with torch.random.fork_rng():
        model = SideBySide(drawn, seed).eval()
        x = torch.randn(2, CHANNELS, HEIGHT, WIDTH)
    outcome = planish.Pipeline.parse(RECIPE.format(activations)).run(
        planish.capture(model, (x,)), planish.Context(data=[x / 2])
    )
    assert math.isclose(outcome.steps[-1].result.details["integer_macs"], 1.0)
    return outcome.graph, x


def drawn_layers(examples: int):
    """A few lists of layers, the simplest first. What fails is printed as it is: shrinking it would take minutes."""
    chosen = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: chosen(given(st.lists(layers(), min_size=4, max_size=4), st.integers(0, 1000))(test))


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_this_machine_and_onnxruntime(activations, tmp_path_factory):
    @drawn_layers(2)
    def check(drawn, seed):
        graph, x = integer_graph(drawn, activations, seed)
        wanted = graph(x)
        compiled = planish.compile(graph, recipe="", batch=2)
        assert all(map(torch.equal, compiled(x), wanted))
        assert SATURATES or export_onnx(graph, tmp_path_factory.mktemp("onnx") / "layers.onnx").equal

    check()


def test_one_core_ends_a_map_whose_last_tile_overlaps_the_one_before():
    # 198 pixels: the last tile of sixteen repeats ten, and of the other six two are written alone.
    plain = Layer(5, (1, 1), (1, 1), (0, 0), (1, 1), 1, "hardswish", 0.0, 0.0)
    graph, x = integer_graph([plain], "uint8", 0)
    alone = replace(planish.Target.get("local"), cores=1)
    assert torch.equal(planish.compile(graph, recipe="", batch=2, target=alone)(x)[0], graph(x)[0])


# Every other arithmetic: vpmaddwd as a C program here, smull, sdot, smmla and vmull as C programs on the emulator.
QEMU = pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")), reason="Unicorn has no smmla"
)

QEMU_32 = pytest.mark.skipif(
    not (shutil.which("qemu-arm") or shutil.which("qemu-arm-static")), reason="Unicorn's part here has 64 bits"
)
EMULATED = [pytest.param("graviton3", marks=QEMU), pytest.param("raspberry-pi-2", marks=QEMU_32)]


@pytest.mark.parametrize("target", ["x86-64-v3", "raspberry-pi-4", "raspberry-pi-5", *EMULATED])
def test_c_programs(target):
    @drawn_layers(2)
    def check(drawn, seed):
        graph, x = integer_graph(drawn, "int8", seed)
        compiled = planish.compile(graph, recipe="", batch=2, target=target)
        assert all(map(torch.equal, compiled(x), graph(x)))

    check()
