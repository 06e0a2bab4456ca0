import pytest
import torch
from torch import nn

import planish
from planish.ir import rewrite
from planish.ir.errors import PassError, VerifyError
from planish.ir.verify import verify

aten = torch.ops.aten


def graph_of(*layers, shape=(2, 4)):
    return planish.capture(nn.Sequential(*layers), torch.randn(*shape))


def test_insert_and_replace_change_what_is_computed():
    graph = graph_of(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    relu = graph.node("relu")
    tanh = rewrite.insert(graph, aten.tanh.default, (relu.args[0],), before=relu, like=relu)
    rewrite.replace(graph, relu, tanh)
    rewrite.finish(graph)
    verify(graph)
    x = torch.randn(3, 4)
    w0, b0, w1, b1 = (graph.weight(n) for n in ("0.weight", "0.bias", "2.weight", "2.bias"))
    expected = nn.functional.linear(torch.tanh(nn.functional.linear(x, w0, b0)), w1, b1)
    torch.testing.assert_close(graph(x), expected, rtol=0, atol=0)  # the same ops, the same bits
    assert graph.node("tanh").meta["stack_trace"] == relu.meta["stack_trace"]


def test_insert_after_infers_the_type_with_the_symbolic_batch():
    graph = graph_of(nn.Linear(4, 6))
    linear = graph.node("linear")
    node = rewrite.insert(graph, aten.view.dtype, (linear, torch.int32), after=linear)
    assert node.meta["val"].dtype == torch.int32
    assert isinstance(node.meta["val"].shape[0], torch.SymInt)


def test_insert_refuses_inputs_that_do_not_fit():
    graph = graph_of(nn.Linear(4, 6))
    linear = graph.node("linear")
    with pytest.raises(VerifyError, match="its inputs do not fit"):
        rewrite.insert(graph, aten.mm.default, (linear, linear), after=linear)


def test_replace_lets_the_new_node_read_the_old_one():
    graph = graph_of(nn.Linear(4, 4), nn.ReLU())
    linear = graph.node("linear")
    doubled = rewrite.insert(graph, aten.mul.Tensor, (linear, 2.0), after=linear)
    rewrite.replace(graph, linear, doubled)
    rewrite.finish(graph)
    assert doubled.args[0] is linear
    assert graph.node("relu").args[0] is doubled


def test_erase_refuses_a_node_that_is_read():
    graph = graph_of(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(PassError, match="still read by relu"):
        rewrite.erase(graph, graph.node("linear"))


def test_set_weight_keeps_requires_grad_and_changes_shapes():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].weight.requires_grad_(False)
    graph = planish.capture(model, torch.randn(2, 4))
    for name, shape in (("0.weight", (3, 4)), ("0.bias", (3,)), ("2.weight", (2, 3))):
        rewrite.set_weight(graph, name, torch.ones(shape))
    rewrite.finish(graph)
    verify(graph)
    assert graph.node("relu").meta["val"].shape[1] == 3
    assert not graph.weight("0.weight").requires_grad
    assert graph.weight("0.bias").requires_grad
    assert isinstance(graph.weight("0.bias"), nn.Parameter)


def test_add_weight_finds_a_free_name_and_keeps_the_kind():
    graph = graph_of(nn.Linear(4, 4, bias=False))
    linear = graph.node("linear")
    node = rewrite.add_weight(graph, "0.weight", torch.ones(4), before=linear)
    parameter = rewrite.add_weight(graph, "deep.er.bias", nn.Parameter(torch.ones(4)), before=linear)
    assert node.target == "0.weight_1"
    assert not isinstance(graph.weight(node), nn.Parameter)
    assert isinstance(graph.weight(parameter), nn.Parameter)
    rewrite.set_argument(graph, linear, "bias", parameter)
    rewrite.finish(graph)
    verify(graph)
    assert list(graph.weights) == ["0.weight", "deep.er.bias"]  # the one without a reader went


def test_set_argument_by_schema_name():
    graph = graph_of(nn.Conv2d(3, 4, 3), shape=(2, 3, 8, 8))
    rewrite.set_argument(graph, graph.node("conv2d"), "padding", [1, 1])
    rewrite.set_argument(graph, graph.node("conv2d"), "dilation", [2, 2])
    rewrite.finish(graph)
    assert list(graph.node("conv2d").meta["val"].shape[2:]) == [6, 6]
    x = torch.randn(2, 3, 8, 8)
    expected = nn.functional.conv2d(x, graph.weight("0.weight"), graph.weight("0.bias"), padding=1, dilation=2)
    torch.testing.assert_close(graph(x), expected, rtol=0, atol=0)  # the same op, the same bits


def test_finish_drops_dead_calls_and_their_weights():
    graph = graph_of(nn.Linear(4, 4), nn.Linear(4, 4))
    last = graph.node("linear_1")
    rewrite.replace(graph, last, graph.node("linear"))
    rewrite.finish(graph)
    assert list(graph.weights) == ["0.weight", "0.bias"]
    assert list(graph.module.state_dict()) == ["0.weight", "0.bias"]
