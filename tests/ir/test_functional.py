"""In-place ops: what they compute stays, whether they become functional or not."""

import pytest
import torch
from torch import nn

import planish
from planish.ir import rewrite


class Chain(nn.Module):
    def forward(self, x):
        y = x + 1
        y.mul_(2)
        y.relu_()
        return y - x


class WrittenThenViewed(nn.Module):
    def forward(self, x):
        y = x * 2
        y.add_(1)
        return y.view(-1), y.flatten(1)


class ViewWritten(nn.Module):
    """The view is written and only the view is read."""

    def forward(self, x):
        y = (x * 2).flatten(1)
        y.relu_()
        return y


class SliceAssigned(nn.Module):
    def forward(self, x):
        y = x * 1
        y[:, 0] = 0
        y[:, 1:].add_(x[:, :-1])
        return y


class BaseReadAfterViewWritten(nn.Module):
    def forward(self, x):
        y = x * 2
        z = y.view(-1)
        z.mul_(3)
        return y + 1, z


class OtherViewReadAfterWrite(nn.Module):
    def forward(self, x):
        y = x * 2
        rows = y.view(-1)
        y.neg_()
        return rows + 1


class Filled(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x)
        y.copy_(x)
        y.clamp_(min=-0.5)
        return y.exp_() + x


class InputWritten(nn.Module):
    def forward(self, x):
        x.mul_(2)
        return x + 1


FUNCTIONAL = [Chain, WrittenThenViewed, ViewWritten, Filled]
WITH_WRITES = [SliceAssigned, BaseReadAfterViewWritten, OtherViewReadAfterWrite, InputWritten]


def writes(graph):
    return [n for n in graph.nodes if n.op == "call_function" and n.target._schema.is_mutable]


@pytest.mark.parametrize("kind", FUNCTIONAL + WITH_WRITES)
def test_numbers_stay(kind):
    model, x = kind(), torch.randn(3, 4)
    graph = planish.capture(model, x.clone())
    # The same ops in the same order give the same bits.
    torch.testing.assert_close(graph(x.clone()), model(x.clone()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", FUNCTIONAL)
def test_no_write_is_left_where_nobody_else_looks(kind):
    graph = planish.capture(kind(), torch.randn(3, 4))
    assert not writes(graph)


@pytest.mark.parametrize("kind", WITH_WRITES)
def test_writes_that_others_see_stay(kind):
    graph = planish.capture(kind(), torch.randn(3, 4))
    assert writes(graph)


def test_writes_survive_dead_code_elimination_and_saving(tmp_path):
    model, x = SliceAssigned(), torch.randn(3, 4)
    graph = planish.capture(model, x)
    graph.save(tmp_path / "g")
    loaded = planish.Graph.load(tmp_path / "g")
    rewrite.finish(loaded)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


def test_inplace_activations_become_plain_ones():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Hardtanh(inplace=True)).eval()
    graph = planish.capture(model, torch.randn(2, 3, 5, 5))
    targets = [str(n.target) for n in graph.nodes if n.op == "call_function"]
    assert targets == ["aten.conv2d.default", "aten.relu.default", "aten.flatten.using_ints", "aten.hardtanh.default"]
