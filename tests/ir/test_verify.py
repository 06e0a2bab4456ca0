"""Every fault is injected into a graph that was fine."""

import pytest
import torch
from example_graphs import made_once
from torch import nn

import planish
from planish.ir import rewrite
from planish.ir.errors import VerifyError
from planish.ir.verify import verify

aten = torch.ops.aten


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return torch.relu(self.bn(x))


RELU_LINE = f"test_verify.py:{Model.forward.__code__.co_firstlineno + 2}"


@made_once
def captured() -> planish.Graph:
    return planish.capture(Model(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def graph():
    graph = captured()
    verify(graph)
    return graph


def refuse(graph, message):
    with pytest.raises(VerifyError, match=message) as caught:
        verify(graph)
    return str(caught.value)


def test_verify_changes_nothing(graph):
    values = [node.meta["val"] for node in graph.nodes if node.op != "output"]
    code = graph.module.code
    verify(graph)
    assert all(a is b for a, b in zip(values, (n.meta["val"] for n in graph.nodes if n.op != "output"), strict=True))
    assert graph.module.code == code


def test_a_wrong_recorded_shape(graph):
    relu = graph.node("relu")
    relu.meta["val"] = graph.node("x").meta["val"]
    text = refuse(graph, r"its type is recorded as f32\[b,3,8,8\]; it is f32\[b,4,6,6\]")
    assert RELU_LINE in text
    assert "aten.relu.default" in text


def test_a_wrong_recorded_dtype(graph):
    relu = graph.node("relu")
    relu.meta["val"] = relu.meta["val"].double()
    refuse(graph, r"recorded as f64\[b,4,6,6\]; it is f32")


def test_a_lost_dynamic_batch(graph):
    relu = graph.node("relu")
    relu.meta["val"] = relu.meta["val"].new_empty(2, 4, 6, 6)
    refuse(graph, r"recorded as f32\[2,4,6,6\]; it is f32\[b,4,6,6\]")


def test_a_missing_recorded_type(graph):
    del graph.node("relu").meta["val"]
    refuse(graph, "its type is recorded as nothing")


def test_inputs_that_do_not_fit(graph):
    graph.node("conv2d").update_arg(0, graph.node("relu").args[0].args[1])
    refuse(graph, "its inputs do not fit")


def test_a_node_that_reads_a_later_one(graph):
    graph.node("conv2d").update_arg(0, graph.node("relu"))
    refuse(graph, "the graph is malformed")


def test_a_node_of_a_foreign_kind(graph):
    relu = graph.node("relu")
    with graph.module.graph.inserting_after(relu):
        call = graph.module.graph.call_method("tanh", (relu,))
    relu.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    refuse(graph, "a node is a 'call_method'")


def test_too_many_arguments(graph):
    relu = graph.node("relu")
    relu.args = (*relu.args, 1, 2)
    refuse(graph, "3 arguments; the op takes 1")


def test_a_weight_that_is_not_there(graph):
    del graph.module.conv.bias
    refuse(graph, "no weight 'conv.bias'|references nonexistent attribute")


def test_a_weight_that_nobody_uses(graph):
    rewrite.add_weight(graph, "left", torch.ones(1), before=graph.node("conv2d"))
    refuse(graph, "weight 'left' is read but not used")


def test_a_weight_of_another_shape(graph):
    graph.module.conv.weight = nn.Parameter(torch.ones(4, 3, 1, 1))
    refuse(graph, r"weight 'conv.weight' has shape \[4, 3, 1, 1\]; \[4, 3, 3, 3\] is recorded")


def test_a_weight_of_another_dtype(graph):
    graph.module.conv.bias = nn.Parameter(torch.ones(4, dtype=torch.float64))
    refuse(graph, "weight 'conv.bias' has dtype torch.float64; torch.float32 is recorded")


def test_a_weight_with_nan(graph):
    with torch.no_grad():
        graph.weight("conv.bias")[2] = float("nan")
    refuse(graph, "weight 'conv.bias' holds NaN")


def test_a_weight_left_behind_by_a_pass(graph):
    rewrite.finish(graph)
    graph.properties.add("touched")
    graph.module.register_buffer("left", torch.ones(1))
    refuse(graph, "weight 'left' has no reader")


def test_a_property_that_does_not_hold(graph):
    rewrite.finish(graph)
    graph.properties.add("no-batch-norm")
    refuse(graph, r"'aten.batch_norm.default' \(test_verify.py:\d+\): the graph is said to have 'no-batch-norm'")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf")])
def test_a_scale_that_is_not_finite_and_positive(graph, scale):
    relu = graph.node("relu")
    scale_node = rewrite.add_weight(graph, "scale", torch.tensor([scale]), before=relu)
    zero_node = rewrite.add_weight(graph, "zero_point", torch.tensor([0], dtype=torch.int32), before=relu)
    fake_quantize = aten.fake_quantize_per_tensor_affine.tensor_qparams
    node = rewrite.insert(graph, fake_quantize, (relu.args[0], scale_node, zero_node, 0, 255), before=relu)
    rewrite.set_argument(graph, relu, "self", node)
    rewrite.finish(graph)
    verify(graph)
    graph.properties.add("calibrated")
    refuse(graph, "scales are finite and positive")
