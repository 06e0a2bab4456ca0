"""Kept results of shape inference: the same as inferred anew, never of a call that differs or brings a symbol."""

import gc
import weakref

import pytest
import torch
from models import densenet, efficientnet, mobilenet
from torch import nn

import planish
from planish.ir import shapes
from planish.ir.inferred import Call
from planish.ir.ops import tensors
from planish.ir.specialize import fix_batch

aten = torch.ops.aten


def graph_of(*calls):
    """A graph that makes these (op, arguments after the input) one after the other of its input."""

    class Net(nn.Module):
        def forward(self, x):
            return [op(x, *rest) for op, *rest in calls]

    return planish.capture(Net(), (torch.randn(1, 4, 6),))


@pytest.mark.parametrize("network", [densenet, efficientnet, mobilenet])
def test_results_are_those_of_inference(network, monkeypatch):
    graph = planish.capture(network(), (torch.randn(1, 3, 32, 32),))
    kept = [shapes.infer(node) for node in graph.nodes if node.op == "call_function"]
    monkeypatch.setattr(Call, "of", lambda *_: None)
    anew = [shapes.infer(node) for node in graph.nodes if node.op == "call_function"]
    for mine, wanted in zip(kept, anew, strict=True):
        for a, b in zip(tensors(mine), tensors(wanted), strict=True):
            assert (a.dtype, a.device, a.shape, a.stride()) == (b.dtype, b.device, b.shape, b.stride())


def test_a_call_is_run_once(monkeypatch):
    graph = graph_of((aten.sum.dim_IntList, [1]), (aten.sum.dim_IntList, [2]))
    ran = []
    run = shapes._run
    monkeypatch.setattr(shapes, "_run", lambda node, *rest: ran.append(node) or run(node, *rest))
    shapes.propagate(graph.module)
    assert not ran  # capture has inferred them
    first = next(node for node in graph.nodes if node.op == "call_function")
    first.args = (first.args[0], [0])
    shapes.propagate(graph.module)
    assert ran == [first]


def test_a_flag_is_not_the_number_that_equals_it():
    graph = graph_of((aten.add.Scalar, 1), (aten.add.Scalar, True), (aten.add.Scalar, 1.0))
    assert len(graph.calls("add")) == 3
    x = graph.calls("add")[0].args[0].meta["val"]
    keys = {Call.of(x.fake_mode, aten.add.Scalar, (x, other), {}).key for other in (1, True, 1.0)}
    assert len(keys) == 3


def test_types_are_part_of_the_call():
    x = graph_of((aten.relu,)).calls("relu")[0].args[0].meta["val"]

    def key(tensor):
        return Call.of(x.fake_mode, aten.relu.default, (tensor,), {}).key

    with x.fake_mode:
        others = [x.double(), x.transpose(1, 2), x[:, :2], torch.empty_strided(x.shape, (48, 12, 2))]
    assert len({key(x), *map(key, others)}) == 5
    assert key(x) == key(x.clone())


def test_what_brings_a_symbol_is_not_kept():
    x = graph_of((aten.relu,)).calls("relu")[0].args[0].meta["val"]
    call = Call.of(x.fake_mode, aten.nonzero.default, (x,), {})
    with x.fake_mode:
        counted = aten.nonzero.default(x)
    assert call.keep(counted) is counted and call.result() is None


def test_real_tensors_and_constants_have_no_key():
    x = graph_of((aten.relu,)).calls("relu")[0].args[0].meta["val"]
    with x.fake_mode:
        constant = torch.tensor(3)
    assert constant.constant is not None
    for other in (torch.ones(2), constant, slice(1)):
        assert Call.of(x.fake_mode, aten.add.Tensor, (x, other), {}) is None


def test_results_go_with_their_graph():
    graph = fix_batch(graph_of((aten.relu,)), 1)  # PyTorch 2.13 never lets go of the mode of an export
    mode = weakref.ref(graph.calls("relu")[0].meta["val"].fake_mode)
    assert mode() is not None
    del graph
    gc.collect()
    assert mode() is None
