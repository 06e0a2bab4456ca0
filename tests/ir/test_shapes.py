import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import planish
from planish.ir import shapes
from planish.ir.errors import UsageError
from planish.ir.shapes import TensorSpec, check_inputs, short_dtype


@settings(max_examples=15)  # each example is an export
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 9), st.integers(1, 3))
def test_inferred_shapes_match_what_runs(extents, batch, kernel):
    """A conv net over random sizes: every recorded type, at a random batch, equals the tensor that PyTorch makes."""
    size = [extent + kernel for extent in extents[:2]]
    model = nn.Sequential(
        nn.Conv2d(2, 3, kernel), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(6, 2)
    )
    graph = planish.capture(model, torch.randn(2, 2, *size))
    seen = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n):
            seen[n.name] = value = super().run_node(n)
            return value

    Recorder(graph.module).run(torch.randn(batch, 2, *size))
    for node in graph.nodes:
        if node.op == "call_function":
            assert [shapes.concrete(s, batch) for s in node.meta["val"].shape] == list(seen[node.name].shape)
            assert node.meta["val"].dtype == seen[node.name].dtype


@given(
    st.lists(st.one_of(st.integers(1, 9), st.sampled_from(["b", "s1"])), max_size=4),
    st.lists(st.integers(0, 9), max_size=4),
)
def test_check_inputs_accepts_exactly_what_fits(wanted, actual):
    spec = TensorSpec("x", torch.float32, tuple(wanted))
    symbols = {s: {a for w, a in zip(wanted, actual, strict=False) if w == s} for s in wanted if isinstance(s, str)}
    fits = len(wanted) == len(actual)
    fits = fits and all(isinstance(w, str) or w == a for w, a in zip(wanted, actual, strict=True))
    fits = fits and all(len(found) == 1 and min(found) >= 1 for found in symbols.values())
    if fits:
        assert check_inputs("test", [spec], (torch.zeros(actual),)) == {s: min(v) for s, v in symbols.items()}
    else:
        with pytest.raises(UsageError, match="input 'x' is f32"):
            check_inputs("test", [spec], (torch.zeros(actual),))


@pytest.mark.parametrize(
    ("dtype", "short"),
    [
        (torch.float32, "f32"),
        (torch.bfloat16, "bf16"),
        (torch.float16, "f16"),
        (torch.int8, "i8"),
        (torch.uint8, "u8"),
        (torch.int64, "i64"),
        (torch.bool, "b1"),
        (torch.complex64, "c64"),
    ],
)
def test_short_dtypes(dtype, short):
    assert short_dtype(dtype) == short


def test_symbols_have_stable_names():
    dims = {"x": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}, "y": {0: torch.export.Dim.AUTO}}

    class Two(nn.Module):
        def forward(self, x, y):
            return x.cumsum(1), torch.cat([y, y])

    program = torch.export.export(Two(), (torch.randn(4, 6), torch.randn(9, 2)), dynamic_shapes=dims)
    graph = planish.capture(program)
    assert [spec.shape for spec in graph.inputs] == [("b", "s1"), ("s2", 2)]
    assert [spec.shape for spec in graph.outputs] == [("b", "s1"), ("2*s2", 2)]
    assert graph.example_inputs(batch=3)[0].shape == (3, 3)


def test_propagating_again_keeps_every_type():
    graph = planish.capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), torch.randn(2, 3, 6, 6))
    before = str(graph)
    shapes.propagate(graph.module)
    assert str(graph) == before
    shapes.propagate(graph.module, graph.inputs)
    assert str(graph) == before


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_a_resized_type_is_the_one_that_torch_makes(order):
    graph = planish.capture(nn.Conv2d(3, 4, 3).eval(), (torch.randn(1, 3, 8, 8),))
    value = graph.calls("conv2d")[0].meta["val"]
    batch = value.shape[0]
    for extents in ((batch, 7, 5, 6), (2 * batch, 1, 5, 6), (3, 7, 5, 6)):
        with value.fake_mode:
            expected = torch.empty_permuted(extents, order)
        found = shapes.resized(value, extents, order)
        for of in (torch.Tensor.size, torch.Tensor.stride, shapes.memory_order):
            assert str(of(found)) == str(of(expected))
        assert (found.dtype, found.device, found.fake_mode) == (expected.dtype, expected.device, expected.fake_mode)
        assert not found.requires_grad and not found._is_view()


@pytest.mark.parametrize("tensor", [torch.ones(3, 4).t(), torch.tensor(2), nn.Parameter(torch.ones(2, 3), False)])
def test_a_fake_weight_is_the_one_that_torch_makes(tensor):
    graph = planish.capture(nn.Linear(3, 4).eval(), (torch.randn(1, 3),))
    node = graph.calls("linear")[0]
    found, expected = shapes.fake_like(node, tensor), node.meta["val"].fake_mode.from_tensor(tensor, static_shapes=True)
    for of in (torch.Tensor.size, torch.Tensor.stride, lambda t: (t.dtype, t.device, t.requires_grad, t.is_leaf)):
        assert of(found) == of(expected)
    assert isinstance(found, nn.Parameter) == isinstance(tensor, nn.Parameter)
