"""Models of which TVM takes a part: what goes where, and the same answers as PyTorch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish
from planish.backends.hybrid import HybridArtifact, plan_regions
from planish.backends.partition import split
from planish.backends.target import Target
from planish.backends.tvm import relax
from planish.backends.tvm.inference import freeze
from planish.ir.errors import BuildError

# float32 sums in another order.
TOLERANCE: Any = {"rtol": 1e-4, "atol": 1e-5}


class Middle(nn.Module):
    """conv -> an op that TVM has no form for -> conv -> linear, with a size that is read off the input."""

    def __init__(self, between=lambda y: torch.fft.fft2(y).real):
        super().__init__()
        self.between = between
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 6)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.between(torch.relu(self.first(x)))
        y = torch.relu(self.second(y)).mean((2, 3))
        return self.head(y).view(x.shape[0], 2, 3), y


class Function(nn.Module):
    def __init__(self, function, **layers: nn.Module):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.eval()

    def forward(self, *inputs: Tensor):
        return self.function(self, *inputs)


def check(model: nn.Module, *inputs: Tensor, **options) -> planish.CompiledModel:
    compiled = planish.compile(model, inputs, **options)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), model(*inputs), **TOLERANCE)
    return compiled


def plan(model: nn.Module, *inputs: Tensor):
    return plan_regions(planish.capture(model, inputs), Target.get("local"))


@pytest.mark.parametrize("batch", [None, "dynamic"])
def test_the_op_in_the_middle_stays_and_both_sides_are_compiled(batch):
    model = Middle()
    compiled = check(model, torch.randn(2, 3, 8, 8), batch=batch)
    report = compiled.report
    assert {op for op, _ in report.eager} == {"aten.fft_fft2.default", "aten.real.default"}
    assert all(line.startswith("test_partition.py:") for _, line in report.eager)
    assert report.facts["regions"] == 2
    assert sum("3x3" in layer["kernel"] for layer in report.layers) == 2
    assert "aten.fft_fft2.default" in str(report)
    if batch:
        other = torch.randn(5, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(compiled(other), model(other), **TOLERANCE)


def test_calls_of_one_op_on_one_line_are_counted():
    model = Function(lambda m, x: torch.special.bessel_j0(torch.special.bessel_j0(m.first(x))), first=nn.Linear(4, 4))
    ((op, line),) = check(model, torch.randn(2, 4)).report.eager
    assert op == "aten.special_bessel_j0.default"
    assert line.endswith(" (2 calls)")


def test_a_shared_weight_is_in_both_regions():
    model = Function(
        lambda m, x: m.first(torch.special.bessel_j0(m.first(x)) + m.first.bias.sum()), first=nn.Linear(4, 4)
    )
    assert check(model, torch.randn(2, 4)).report.facts["regions"] == 2


def test_independent_branches_are_one_region():
    model = Function(lambda m, x: (m.a(x), m.b(x), torch.special.bessel_j0(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    assert check(model, torch.randn(2, 4)).report.facts["regions"] == 1


def test_a_region_never_waits_for_itself():
    def forward(m, x):
        y = m.a(x)
        return m.b(torch.special.bessel_j0(y)) + y  # the add needs both sides of the call in PyTorch

    regions = check(Function(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), torch.randn(2, 4)).report.facts["regions"]
    assert regions == 2


def test_several_outputs_of_a_call_cross_a_border():
    def forward(m, x):
        first, second = m.a(x).chunk(2, 1)
        return m.b(torch.special.bessel_j0(first) * second)

    check(Function(forward, a=nn.Linear(4, 8), b=nn.Linear(4, 4)), torch.randn(2, 4))


@pytest.mark.parametrize(
    "function",
    [lambda m, x: torch.linalg.inv(x).exp(), lambda m, x: torch.linalg.inv(x).t().unsqueeze(0)],
    ids=["one elementwise op", "views"],
)
def test_too_little_work_is_no_region(function):
    x = torch.eye(4) + 0.1
    artifact = plan(Function(function), x)
    assert not artifact.split.regions
    assert "aten.linalg_inv.default" in {op for op, _ in artifact.eager}


def test_the_reason_is_given_where_it_is_not_the_op():
    made = plan(Function(lambda m, x: torch.linalg.inv(x).exp()), torch.eye(4))
    assert any("aten.exp.default" in why and "too little work" in why for why in made.reasons)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: m.first(x) + torch.rand(2, 4), "draws random numbers"),
        (lambda m, x: m.first(x.double().sin().float()), "torch.float64"),
    ],
    ids=["random", "float64"],
)
def test_what_tvm_would_take_wrongly_stays(function, reason):
    made = plan(Function(function, first=nn.Linear(4, 4)), torch.randn(2, 4))
    assert len(made.split.regions) == 1
    assert reason in " ".join(made.reasons)


def test_a_random_call_on_a_weight_is_no_constant():
    model = Function(lambda m, x: m.first(x) * torch.bernoulli(torch.sigmoid(m.first.bias)), first=nn.Linear(64, 64))
    compiled = planish.compile(model, (torch.randn(2, 64),))
    first, second = (compiled(torch.ones(2, 64)) for _ in range(2))
    assert not torch.equal(first, second)


def test_with_writes_everything_stays_in_order():
    def forward(m, x):
        y = m.first(x)
        y[:, 0] = 1
        return m.second(y)

    model = Function(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 4))
    report = check(model, torch.randn(2, 4), recipe="").report
    assert report.facts["regions"] == 0
    assert "writes in place" in " ".join(report.reasons)


def test_a_call_that_tvm_rejects_is_left_out_of_its_region(monkeypatch):
    convert = relax.Emitter.convert

    def failing(emitter, node):
        if "erf" in node.name:
            raise ValueError("no erf today")
        return convert(emitter, node)

    monkeypatch.setattr(relax.Emitter, "convert", failing)
    model = Function(lambda m, x: m.b(m.a(x).erf()), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    report = check(model, torch.randn(2, 4)).report
    assert report.eager[0][0] == "aten.erf.default" and report.facts["regions"] == 2
    assert "no erf today" in " ".join(report.reasons)


def test_a_region_that_fails_to_build_stays_with_the_reason(monkeypatch):
    from planish.backends import hybrid

    def failing(model, target):
        raise RuntimeError("LLVM gave up\nand more")

    monkeypatch.setattr(hybrid, "compile_model", failing)
    report = check(Middle(), torch.randn(2, 3, 8, 8)).report
    assert report.facts["regions"] == 0
    assert {"aten.conv2d.default", "aten.linear.default"} <= {op for op, _ in report.eager}
    assert any("aten.conv2d.default" in why and "LLVM gave up" in why for why in report.reasons)


def test_a_split_without_refusals_is_one_region_with_all_weights():
    graph = freeze(planish.capture(Middle(between=torch.tanh), (torch.randn(2, 3, 8, 8),)))
    (region,) = split(graph, {}).regions.values()
    assert set(region.weights) == set(graph.weights)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        actual, expected = region.module(x), graph.module(x)
    assert {tuple(t.shape) for t in actual} == {tuple(t.shape) for t in expected}


def test_a_model_with_calls_in_pytorch_is_no_bundle(tmp_path):
    compiled = check(Middle(), torch.randn(2, 3, 8, 8))
    assert isinstance(compiled._artifact, HybridArtifact)
    with pytest.raises(BuildError) as caught:
        compiled.save(tmp_path / "model.planish")
    assert "aten.fft_fft2.default" in str(caught.value) and "test_partition.py:" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["raspberry-pi-4", "cuda-sm80"])
def test_boards_and_gpus_refuse_with_op_and_line(target):
    with pytest.raises(BuildError) as caught:
        planish.compile(Middle(), (torch.randn(2, 3, 8, 8),), target=target)
    assert target in str(caught.value)
    assert "aten.fft_fft2.default" in str(caught.value) and "test_partition.py:" in str(caught.value)


def test_ops_that_need_sorting_and_scanning_are_compiled():
    model = Function(lambda m, x: (m.a(x).topk(3), m.a(x).cumsum(-1), m.a(x).argmax(1)), a=nn.Linear(6, 6))
    assert not check(model, torch.randn(2, 6)).report.eager
