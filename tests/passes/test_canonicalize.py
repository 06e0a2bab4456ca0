import pytest
import torch
from torch import nn
from torch.nn import functional

import planish
from planish.ir import rewrite
from planish.ir.ops import arguments, op_name
from planish.passes.base import Fuel
from planish.passes.canonicalize import Canonicalize
from planish.passes.pipeline import Pipeline


class Function(nn.Module):
    """A module around a function, with weights under the function's argument names."""

    def __init__(self, function, **weights):
        super().__init__()
        self.function, self.names = function, list(weights)
        for name, value in weights.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x):
        return self.function(x, *(getattr(self, name) for name in self.names))


def canonical(function, x, fuel=None, **weights):
    """The graph and result after the pass, checked against the model, and that a second run changes nothing."""
    model = Function(function, **weights).eval()
    graph = planish.capture(model, x)
    outcome = Pipeline([Canonicalize()]).run(graph, planish.Context(fuel=Fuel(fuel)))
    # Padding and layout moves change no sum; a linear for an addmm may add in another order: float32 rounding.
    torch.testing.assert_close(outcome.graph(x), model(x), rtol=1e-5, atol=1e-6)
    if fuel is None:
        again = Pipeline([Canonicalize()]).run(outcome.graph)
        assert again.steps[0].result.changed == 0
        assert str(again.graph) == str(outcome.graph)
    return outcome.graph, outcome.steps[0].result


def ops(graph):
    return [op_name(node) for node in graph.nodes if node.op == "call_function"]


NO_OPS = {
    "clone": lambda x: torch.relu(x.clone()) + 1,
    "detach": lambda x: torch.relu(x.detach()) + 1,
    "to dtype": lambda x: torch.relu(x.to(torch.float32)) + 1,
    "to device": lambda x: torch.relu(x.to("cpu")) + 1,
    "view": lambda x: torch.relu(x.view(-1, 3, 6, 6)) + 1,
    "reshape": lambda x: torch.relu(x.reshape(x.shape)) + 1,
    "flatten": lambda x: torch.relu(x.flatten(3)) + 1,
    "expand": lambda x: torch.relu(x.expand(-1, 3, 6, 6)) + 1,
    "slice": lambda x: torch.relu(x[:, 0:3]) + 1,
    "squeeze": lambda x: torch.relu(x.squeeze(1)) + 1,
    "permute": lambda x: torch.relu(x.permute(0, 1, -2, -1)) + 1,
    "pad": lambda x: torch.relu(functional.pad(x, (0, 0, 0, 0))) + 1,
    "a chain": lambda x: torch.relu(x.clone().contiguous().view(x.shape)[:, 0:]) + 1,
}


@pytest.mark.parametrize("case", NO_OPS)
def test_no_ops_go(case):
    graph, result = canonical(NO_OPS[case], torch.randn(2, 3, 6, 6))
    assert ops(graph) == ["relu", "add"]
    assert result.changed == result.details["no-op"] > 0


KEPT = {
    "a transposing permute": lambda x: x.permute(0, 1, 3, 2) + 1,
    "a cropping pad": lambda x: functional.pad(x, (1, -1)) + 1,
    "a real cast": lambda x: x.to(torch.float64) + 1,
    "a flip": lambda x: x.flip(1) + 1,
    "a part": lambda x: x.narrow(1, 0, 2) + 1,
    "every second": lambda x: torch.ops.aten.slice(x, 1, 0, 3, 2) + 1,
    "hardtanh": lambda x: functional.hardtanh(x, 0.0, 6.0),
    "a clone that is the output": lambda x: x.clone(),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_changes_something_stays(case):
    x = torch.randn(2, 3, 6, 6)
    before = ops(planish.capture(Function(KEPT[case]), x))
    graph, result = canonical(KEPT[case], x)
    assert ops(graph) == before
    assert result.changed == 0


def test_a_copy_before_a_view_stays():
    graph, result = canonical(lambda x: torch.relu(x).clone().view(-1, 12) + 1, torch.randn(2, 3, 4))
    assert "clone" in ops(graph)
    assert [skip.why for skip in result.skipped] == ["a view needs the layout that it makes"]
    # An input in another memory layout would break the view without the copy.
    graph(torch.randn(3, 4, 2).permute(2, 0, 1))


def test_a_detach_behind_a_trainable_weight_stays():
    weight = nn.Parameter(torch.randn(4))
    graph, result = canonical(lambda x, w: (x * w).detach() * w, torch.randn(2, 4), w=weight)
    assert "detach" in ops(graph)
    assert [skip.why for skip in result.skipped] == ["it keeps gradients from a trainable weight"]


def test_a_graph_that_writes_in_place_keeps_its_copies():
    def write(x):
        y = x.clone()
        y[:, 0] = 0
        return y + 1

    graph, result = canonical(write, torch.randn(2, 4))
    assert "clone" in ops(graph)
    assert any(skip.why == "the graph writes in place" for skip in result.skipped)


@pytest.mark.parametrize(
    ("conv", "shape", "padding"),
    [
        (nn.Conv1d(3, 4, 5, padding="same", dilation=2), (2, 3, 12), [4]),
        (nn.Conv2d(3, 4, (3, 5), padding="same"), (2, 3, 8, 8), [1, 2]),
        (nn.Conv2d(3, 6, 3, padding="valid", stride=2, groups=3, bias=False), (2, 3, 8, 8), [0, 0]),
        (nn.Conv3d(2, 4, 3, padding="same"), (2, 2, 5, 5, 5), [1, 1, 1]),
        (nn.Conv2d(3, 4, (2, 4), padding="same"), (2, 3, 8, 8), [0, 1]),
    ],
)
def test_string_padding_becomes_numbers(conv, shape, padding):
    graph, result = canonical(lambda x, *_: conv(x), torch.randn(*shape))
    (call,) = [node for node in graph.nodes if op_name(node).startswith("conv") and node.op == "call_function"]
    assert str(call.target).endswith(".default")
    assert list(call.args[4]) == padding
    assert result.details["string-padding"] == 1


def test_an_uneven_rest_of_same_is_a_pad_before_the_conv():
    conv = nn.Conv2d(3, 4, (2, 4), padding="same")
    graph, _ = canonical(lambda x: conv(x), torch.randn(2, 3, 8, 8))
    assert ops(graph) == ["constant_pad_nd", "conv2d"]
    assert list(graph.node("constant_pad_nd").args[1]) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("function", "shape", "padding"),
    [
        (lambda x, w: functional.conv2d(functional.pad(x, (2, 2, 1, 1)), w), (2, 3, 8, 8), [1, 2]),
        (lambda x, w: functional.conv2d(functional.pad(x, (1, 1)), w, padding=1, stride=2), (2, 3, 8, 8), [1, 2]),
        (
            lambda x, w: functional.conv2d(functional.pad(x, (1, 1, 1, 1, 0, 0)), w, padding=(0, 3)),
            (2, 3, 8, 8),
            [1, 4],
        ),
        (lambda x, w: functional.conv2d(functional.pad(x, (1, 1, 1, 1)), w), (3, 8, 8), [1, 1]),
    ],
    ids=["both", "one dim", "with channels", "unbatched"],
)
def test_symmetric_zero_padding_moves_into_the_conv(function, shape, padding):
    graph, result = canonical(function, torch.randn(*shape), w=nn.Parameter(torch.randn(4, 3, 3, 3)))
    assert ops(graph) == ["conv2d"]
    assert list(arguments(graph.node("conv2d")).padding) == padding
    assert result.details["pad-conv"] == 1


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: functional.pad(x, (1, 1), value=1.0),
        lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: functional.pad(x, (2, 2, -1, -1)),
        lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:4],
    ],
    ids=["ones", "reflect", "crop", "channels"],
)
def test_other_padding_stays(pad):
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    _, result = canonical(lambda x, w: functional.conv2d(pad(x), w), torch.randn(2, 3, 8, 8), w=weight)
    assert result.details["pad-conv"] == 0


def test_asymmetric_padding_stays_with_a_reason():
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    function = lambda x, w: functional.conv2d(functional.pad(x, (0, 1, 0, 1)), w, stride=2)  # noqa: E731
    graph, result = canonical(function, torch.randn(2, 3, 8, 8), w=weight)
    assert ops(graph)[1] == "conv2d"
    assert [skip.why for skip in result.skipped] == ["the padding [0, 1, 0, 1] before it is not symmetric"]


def test_a_pad_with_other_readers_stays():
    def function(x, w):
        padded = functional.pad(x, (1, 1, 1, 1))
        return functional.conv2d(padded, w).sum() + padded.sum()

    _, result = canonical(function, torch.randn(2, 3, 8, 8), w=nn.Parameter(torch.randn(4, 3, 3, 3)))
    assert result.details["pad-conv"] == 0


LINEARS = {
    "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
    "mm": lambda x, w, b: torch.mm(x, w.T),
    "matmul": lambda x, w, b: torch.matmul(x, w.transpose(0, 1)),
    "permute": lambda x, w, b: x @ w.permute(1, 0),
}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("case", LINEARS)
def test_products_with_a_transposed_weight_become_linear(case, trained):
    weight, bias = (nn.Parameter(torch.randn(*s), requires_grad=trained) for s in ((5, 4), (5,)))
    graph, result = canonical(LINEARS[case], torch.randn(3, 4), w=weight, b=bias)
    assert ops(graph) == ["linear"]
    assert result.details["linear"] == 1
    assert graph.node("linear").args[1].target == "w"


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, b: torch.addmm(b, x, w.t(), beta=2),
        lambda x, w, b: torch.addmm(b[:1], x, w.t()),
        lambda x, w, b: x @ w,
        lambda x, w, b: x @ x.t(),
        lambda x, w, b: x @ w.transpose(0, 0),
    ],
    ids=["beta", "broadcast bias", "not transposed", "no weight", "transposed onto itself"],
)
def test_other_products_stay(function):
    weights = {"w": nn.Parameter(torch.randn(4, 4)), "b": nn.Parameter(torch.randn(4))}
    _, result = canonical(function, torch.randn(4, 4), **weights)
    assert result.details["linear"] == 0


def test_constants_are_computed_once():
    scale, frozen = torch.rand(4), nn.Parameter(torch.rand(4), requires_grad=False)
    graph, result = canonical(lambda x, s, f: x * (s.sqrt() + f), torch.randn(2, 4), s=scale, f=frozen)
    assert ops(graph) == ["mul"]
    assert result.details["constant"] == 2
    (name,) = graph.weights
    torch.testing.assert_close(graph.weight(name), scale.sqrt() + frozen, rtol=0, atol=0)  # the same ops


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x * w.sqrt(),
        lambda x, w: x * torch.dropout(w.detach() * 1, 0.5, False)[None] + w,
    ],
    ids=["trained", "dropout"],
)
def test_what_can_still_change_is_not_folded(function):
    _, result = canonical(function, torch.randn(2, 4), w=nn.Parameter(torch.rand(4)))
    assert result.details["constant"] == 0


def test_batch_statistics_are_not_folded():
    def function(x, mean, var):
        return functional.batch_norm(x, mean, var) + var.sqrt()

    graph, result = canonical(function, torch.randn(3, 4), mean=torch.zeros(4), var=torch.ones(4))
    assert result.details["constant"] == 0
    assert "sqrt" in ops(graph)


def test_quantizers_are_not_folded():
    def function(x, w, scale, zero_point):
        return x * torch.fake_quantize_per_tensor_affine(w, scale, zero_point, -127, 127)

    weights = {"w": torch.rand(4), "s": torch.tensor([0.1]), "z": torch.zeros(1, dtype=torch.int32)}
    _, result = canonical(function, torch.randn(3, 4), **weights)
    assert result.details["constant"] == 0


def test_a_constant_that_would_grow_the_file_is_not_folded():
    graph, _ = canonical(lambda x, w: x + w.repeat(300, 1).sum(0), torch.randn(2, 400), w=torch.rand(400))
    assert "repeat" in ops(graph)


def test_random_numbers_stay_random():
    graph = planish.capture(Function(lambda x, w: x + torch.rand_like(w), w=torch.rand(4)), torch.randn(2, 4))
    assert Pipeline([Canonicalize()]).run(graph).steps[0].result.changed == 0


def test_dead_code_goes():
    graph = planish.capture(Function(lambda x: x + 1), torch.randn(2, 4))
    x = graph.node("x")
    first = rewrite.insert(graph, torch.ops.aten.tanh.default, (x,), after=x)
    rewrite.insert(graph, torch.ops.aten.exp.default, (first,), after=first)
    outcome = Pipeline([Canonicalize()]).run(graph)
    assert outcome.steps[0].result.details["dead-code"] == 2
    assert ops(outcome.graph) == ["add"]


def test_fuel_counts_rewrites():
    function = lambda x: torch.relu(x.clone().expand(-1, 4).clone()) + 1  # noqa: E731
    x = torch.randn(2, 4)
    total = canonical(function, x)[1].changed
    assert total == 3
    for fuel in range(total + 1):
        assert canonical(function, x, fuel=fuel)[1].changed == fuel


def test_the_dynamic_batch_survives():
    conv = nn.Conv2d(3, 4, 4, padding="same")
    graph, _ = canonical(lambda x: conv(x.clone()).flatten(1), torch.randn(2, 3, 4, 4))
    assert graph.outputs[0].shape == ("b", 64)
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(graph(x), conv(x).flatten(1), rtol=1e-5, atol=1e-6)  # float32 sums of 48 products
