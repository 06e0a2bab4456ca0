"""Regularisers: value and gradient are those of the formulas, and training with them empties groups."""

import numpy as np
import pytest
import torch
from torch import nn
from train_cases import batches, conv_graph, mlp_graph, resnet_graph

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.train.regularizers import GroupLasso, Growing, Slimming

CPU = torch.device("cpu")


def two_layers():
    """Eight hidden units: unit j owns row j and bias j of the first layer and column j of the second."""
    return capture(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double(), torch.randn(2, 3).double())


def gradients(graph, penalty):
    names = list(graph.parameters)
    found = torch.autograd.grad(penalty, [graph.parameters[n] for n in names], allow_unused=True)
    return dict(zip(names, found, strict=True))


def test_group_lasso_is_the_sum_of_norms_of_hidden_units():
    graph = two_layers()
    w, b, v, _ = (p.detach().numpy() for p in graph.parameters.values())
    norms = np.sqrt((w**2).sum(1) + b**2 + (v**2).sum(0))
    root = np.sqrt(3 + 1 + 2)
    penalty = GroupLasso(Groups(IndexGraph(graph)), 0.1, CPU)(0)
    assert float(penalty.detach()) == pytest.approx(0.1 * root * norms.sum(), rel=1e-12)  # float64 sums
    found = gradients(graph, penalty)
    for name, value in {"0.weight": w / norms[:, None], "0.bias": b / norms, "2.weight": v / norms}.items():
        np.testing.assert_allclose(found[name].numpy(), 0.1 * root * value, rtol=1e-12)
    assert found["2.bias"] is None


def test_a_group_of_zeros_has_no_gradient():
    graph = two_layers()
    with torch.no_grad():
        graph.weight("0.weight")[3] = 0
        graph.weight("0.bias")[3] = 0
        graph.weight("2.weight")[:, 3] = 0
    found = gradients(graph, GroupLasso(Groups(IndexGraph(graph)), 0.1, CPU)(0))
    assert all(torch.isfinite(g).all() for g in found.values() if g is not None)
    assert not found["0.weight"][3].any() and found["0.weight"][2].all()


@pytest.mark.parametrize("make", [conv_graph, resnet_graph, mlp_graph])
def test_group_lasso_counts_every_entry_of_a_group_once(make):
    """Against sums over the atoms of the index graph, entry by entry."""
    graph = make()
    index = IndexGraph(graph)
    groups = Groups(index)
    squares, sizes = np.zeros((2, groups.count))
    for name, weight in graph.parameters.items():
        values = weight.detach().double().numpy() ** 2
        numbers = [groups.number[dim] for dim in index.weights[name]]
        for entry in np.ndindex(values.shape):
            for group in {int(n[i]) for n, i in zip(numbers, entry, strict=True)} - {-1}:
                squares[group] += values[entry]
                sizes[group] += 1
    expected = (np.sqrt(sizes) * np.sqrt(squares)).sum()
    # float32 sums of up to some thousand squares
    assert float(GroupLasso(groups, 1.0, CPU)(0).detach()) == pytest.approx(expected, rel=1e-5)


def test_slimming_is_the_absolute_sum_of_scales():
    scales = (torch.randn(4, requires_grad=True), torch.randn(3, requires_grad=True))
    penalty = Slimming(scales, 0.5)(0)
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(0.5 * sum(float(s.detach().abs().sum()) for s in scales))
    assert all(torch.equal(s.grad, 0.5 * s.detach().sign()) for s in scales)


def test_growing_grows_up_to_its_limit():
    weight, gone = torch.randn(4, requires_grad=True), torch.tensor([True, False, True, False])
    growing = Growing((weight,), (gone,), strength=0.25, every=3)
    for step, factor in ((0, 0.25), (2, 0.25), (3, 0.5), (11, 1.0), (500, 1.0)):
        (found,) = torch.autograd.grad(growing(step), weight)
        torch.testing.assert_close(found, factor * weight.detach() * gone)


def run(text, graph, data):
    return Pipeline.parse(text).run(graph, Context(data=data))


def test_training_with_group_lasso_empties_groups():
    graph = mlp_graph()

    def norms(trained):
        weight = trained.weight("0.weight").detach()
        return weight.norm(dim=1)

    plain = run("finetune{epochs=20, lr=0.05}", graph, batches()).graph
    lasso = run("finetune{epochs=20, lr=0.05, regularizer=group-lasso, strength=0.006}", graph, batches()).graph
    assert (norms(lasso) < 0.1).sum() > 10 and not (norms(plain) < 0.1).any()


def test_what_growing_pushes_down_is_what_the_cut_takes():
    """After it, a cut at the same target changes the outputs far less than after plain training."""
    options, data = "epochs=20, lr=0.05", batches()
    x = data[0][0]

    def damage(text):
        trained = run(text, mlp_graph(), data).graph
        return float((run("prune-channels{ratio=0.5}", trained, data).graph(x) - trained(x)).detach().norm())

    grown = damage(f'finetune{{{options}, regularizer=growing, strength=0.02, grow-every=2, removal="ratio=0.5"}}')
    assert grown < 0.2 * damage(f"finetune{{{options}}}")


def test_slimming_shrinks_the_scales():
    def scales(text):
        graph = run(text, conv_graph(), batches(8, (3, 8, 8))).graph
        return float((graph.weight("1.weight").abs().sum() + graph.weight("4.weight").abs().sum()).detach())

    slim = scales("finetune{epochs=6, lr=0.05, regularizer=slimming, strength=0.2}")
    assert slim < 0.8 * scales("finetune{epochs=6, lr=0.05}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-batch-norm, finetune{regularizer=slimming}", "put 'finetune' before 'fold-batch-norm'"),
        ('finetune{regularizer=growing, removal="ratio=0.001"}', "'ratio=0.001' removes nothing"),
    ],
)
def test_what_cannot_be_regularised(text, message):
    with pytest.raises(UsageError, match=message):
        run(text, conv_graph(), batches(8, (3, 8, 8)))


def test_a_model_without_groups_has_no_lasso():
    graph = capture(nn.Linear(20, 5), torch.randn(2, 20))
    with pytest.raises(UsageError, match="no channel of the model can be removed"):
        run("finetune{regularizer=group-lasso}", graph, batches())
