"""One run over the data: what it leaves behind, what it reads, and what it refuses."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from example_graphs import example_graph
from models import EXAMPLES
from score_cases import make_batches, make_case
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.passes.base import Context
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.score.criteria import CRITERIA
from planish.passes.prune.score.evidence import gather
from planish.passes.prune.score.importance import importance

ALL = tuple(CRITERIA)


class Counted:
    """A loader that counts how often it is read."""

    def __init__(self, batches, length=None):
        self.batches, self.reads, self.length = batches, 0, length

    def __iter__(self):
        self.reads += 1
        return iter(self.batches)

    def __len__(self):
        return len(self.batches) if self.length is None else self.length


def image_batches(count=2):
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(3, 3, 16, 16, generator=generator), torch.randint(10, (3,), generator=generator))
        for _ in range(count)
    ]


def test_one_run_serves_all_criteria_and_leaves_the_graph_as_it_was():
    graph = example_graph("mobilenet").train()
    graph.weight("classifier.weight").requires_grad_(False)
    kept = torch.full_like(graph.weight("stem.0.weight"), 7.0)
    graph.weight("stem.0.weight").grad = kept
    text, weights = graph.text(), {name: (w, w.detach().clone(), w.requires_grad) for name, w in graph.weights.items()}
    loader, state = Counted(image_batches()), torch.get_rng_state()
    evidence = gather(graph, Context(data=loader), ALL, "test")
    assert (loader.reads, evidence.batches) == (1, 2)
    assert set(evidence.quantities) == {"gradient", "squared-gradient", "curvature", "activation", "zeros"}
    assert graph.module.training and graph.text() == text
    assert torch.equal(torch.get_rng_state(), state)
    for name, (tensor, value, requires_grad) in weights.items():
        assert graph.weight(name) is tensor and torch.equal(tensor, value) and tensor.requires_grad is requires_grad
        assert tensor.grad is (kept if name == "stem.0.weight" else None)
    assert float(evidence.of("gradient")["classifier.weight"].abs().sum()) > 0  # frozen, and scored


def test_gradients_are_those_of_the_loss_in_eval_form():
    model = EXAMPLES["mobilenet"][0]()  # it has dropout, which eval form leaves out
    graph = capture(model, torch.randn(2, 3, 16, 16)).train()
    batches = image_batches(3)
    evidence = gather(graph, Context(data=batches), ("taylor", "fisher"), "test")
    (sum(nn.functional.cross_entropy(model(x), y) for x, y in batches) / 3).backward()
    for name, gradient in evidence.of("gradient").items():
        # float32 on both sides, summed in another order
        torch.testing.assert_close(gradient, model.get_parameter(name).grad.double(), rtol=1e-4, atol=1e-6)
        assert bool((evidence.of("squared-gradient")[name] >= gradient.square() * (1 - 1e-9)).all())  # Jensen


def test_the_same_bytes_every_time_and_no_data_for_weights_alone():
    case = make_case("grouped")
    one, two = (gather(case.graph, Context(data=make_batches("grouped", 2)), ALL, "test") for _ in range(2))
    for quantity, values in one.quantities.items():
        for name, value in values.items():
            assert np.array_equal(np.asarray(value), np.asarray(two.of(quantity)[name]))
    other = gather(case.graph, Context(data=make_batches("grouped", 2), seed=1), "hessian", "test")
    assert not torch.equal(other.of("curvature")["0.weight"], one.of("curvature")["0.weight"])
    loader = Counted([])
    assert gather(case.graph, Context(data=loader), ("l1", "lamp", "batch-norm"), "test").batches == loader.reads == 0


def test_weights_that_the_loss_does_not_reach_get_zero():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.other = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)

        def forward(self, x):
            x = torch.tanh(self.body(x))
            return self.one(x), self.other(x)

    graph = capture(TwoHeads(), torch.randn(2, 4))
    data = [(torch.randn(5, 4), torch.randint(3, (5,)))]
    ctx = Context(data=data, loss=lambda outputs, labels: nn.functional.cross_entropy(outputs[0], labels))
    evidence = gather(graph, ctx, ("taylor", "fisher", "hessian"), "test")
    for quantity in ("gradient", "squared-gradient", "curvature"):
        values = evidence.of(quantity)
        assert not bool(values["other.weight"].any()) and bool(values["one.weight"].any())
    assert (importance(Groups(IndexGraph(graph)), "fisher", evidence) > 0).all()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.block(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.cell, self.head = nn.Linear(6, 8), nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cell(torch.relu(self.first(x)))[0][:, -1])


@cache
def groups_of(make: type[nn.Module], width: int) -> Groups:
    """Made once: to gather evidence leaves a graph as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Groups(IndexGraph(capture(make().eval(), torch.randn(2, 4, width))))


@pytest.mark.parametrize("criterion", ALL)
@pytest.mark.parametrize(("make", "width"), [(Attention, 8), (Recurrent, 6)])
def test_transformers_and_recurrent_layers(make, width, criterion):
    groups, data = groups_of(make, width), [(torch.randn(3, 4, width), torch.randint(3, (3,)))] * 2
    evidence = gather(groups.index.graph, Context(data=data), criterion, "test")
    if criterion == "batch-norm":
        with pytest.raises(UsageError, match="no batch norm"):
            importance(groups, criterion, evidence)
        return
    scores = importance(groups, criterion, evidence)
    # An untrained model has groups without which the loss would fall: they all score 0.
    distinct = groups.count / (5 if criterion == "hessian" else 2)
    assert groups.count > 5 and np.isfinite(scores).all() and len(np.unique(scores)) > distinct


def ctc(outputs, labels):
    one = torch.ones(1, dtype=torch.long)
    return nn.functional.ctc_loss(outputs.log_softmax(-1)[:, None], one[None], 4 * one, one)


GOOD = make_batches("mlp", 2)
REFUSED = {
    "no data": ("taylor", None, None, "prune-channels: no data was given; pass data=loader."),
    "empty": ("apoz", [], None, "prune-channels: the loader is empty; give at least one batch."),
    "no labels": (
        "fisher",
        [x for x, _ in GOOD],
        None,
        "prune-channels: batch 1 has no labels; expected (inputs, labels); pass data=loader of such batches.",
    ),
    "short": (
        "activation",
        Counted(GOOD, 3),
        None,
        "prune-channels: the loader ended after 2 of its 3 batches; check the data set; "
        "scores of a part of the data would mislead.",
    ),
    "wrong labels": (
        "taylor",
        [(GOOD[0][0], torch.tensor([0, 1]))],
        None,
        "prune-channels, batch 1: the loss fails: ValueError: Expected input batch_size (4) to match target batch_size "
        "(2).; expected labels that fit loss(outputs, labels).",
    ),
    "loss per sample": (
        "taylor",
        GOOD,
        lambda out, labels: out.sum(1),
        "prune-channels, batch 1: the loss is [4]; expected a tensor with one number.",
    ),
    "NaN": (
        "fisher",
        GOOD,
        lambda out, labels: out.sum() * math.nan,
        "prune-channels, batch 1: the loss is nan; check the labels, the data's range and the weights.",
    ),
    "detached": (
        "taylor",
        GOOD,
        lambda out, labels: out.detach().sum(),
        "prune-channels, batch 1: the loss depends on no parameter; expected one that gradients flow through.",
    ),
    "NaN gradient": (
        "taylor",
        GOOD,
        lambda out, labels: (out * 0).abs().sqrt().sum(),
        "prune-channels, batch 1: the gradient of weight '0.weight' holds NaN or infinity; "
        "check the loss and the data.",
    ),
    "no second derivative": (
        "hessian",
        GOOD,
        ctc,
        "prune-channels, batch 1: the loss cannot be differentiated twice: derivative for aten::_ctc_loss_backward is "
        "not implemented; choose another importance, such as fisher.",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason):
    criterion, data, loss, message = REFUSED[reason]
    graph = make_case("mlp").graph.train()
    ctx = Context(data=data) if loss is None else Context(data=data, loss=loss)
    with pytest.raises(UsageError) as caught:
        gather(graph, ctx, criterion, "prune-channels")
    assert str(caught.value) == message
    assert graph.module.training


def test_an_activation_that_is_not_finite_is_named():
    case = make_case("mlp")
    with torch.no_grad():
        case.graph.weight("2.bias")[1] = math.inf
    with pytest.raises(UsageError, match=r"test, batch 1: the output of layer '2' holds NaN or infinity; seen after"):
        gather(case.graph, Context(data=GOOD), "activation", "test")


def test_an_unknown_criterion_is_refused_before_data_is_read():
    loader = Counted(GOOD)
    with pytest.raises(UsageError, match="unknown importance 'tailor'; did you mean 'taylor'"):
        gather(make_case("mlp").graph, Context(data=loader), ("l1", "tailor"), "test")
    assert loader.reads == 0
