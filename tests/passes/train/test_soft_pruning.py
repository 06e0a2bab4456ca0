"""Soft pruning: the right filters are zeroed after each epoch, and they can come back."""

import pytest
import torch
from torch import nn
from train_cases import batches, conv_graph

from planish.ir.capture import capture
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.train.removal import parse_removal, removed_entries, zero_filters

DATA = batches(8, (3, 8, 8))


def run(text, graph, **context):
    return Pipeline.parse(text).run(graph, Context(data=DATA, **context)).graph


def filters(graph, name="0.weight"):
    """Which filters of a conv are zero."""
    return (graph.weight(name).detach().flatten(1) == 0).all(1)


def test_what_is_zero_at_the_end_is_what_the_cut_removes():
    trained = run('finetune{epochs=2, soft=true, removal="ratio=0.5"}', conv_graph())
    cut = run("prune-channels{ratio=0.5}", trained)
    for name in ("0.weight", "3.weight"):
        zero = filters(trained, name)
        assert int(zero.sum()) == len(zero) // 2
        kept = trained.weight(name)[~zero]
        inputs = kept if name == "0.weight" else kept[:, ~filters(trained)]
        assert torch.equal(cut.weight(name), inputs)
    assert not filters(trained, "9.weight").any()  # the head makes the outputs


def test_zeroed_filters_are_trained_on_and_may_be_others_the_next_time():
    """With a high rate the choice changes from epoch to epoch, which it could not if zeros stayed."""
    seen = []

    def watch(graph):
        seen.append(filters(graph))
        return 0.0

    run('finetune{epochs=8, lr=0.2, soft=true, removal="ratio=0.5"}', conv_graph(), evaluate=watch)
    assert not seen[0].any() and all(int(zero.sum()) == 6 for zero in seen[1:])
    assert len({tuple(zero.tolist()) for zero in seen[1:]}) > 1


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_transposed_convs(groups):
    """[in, out / groups, ...]: zeroing equals removing, for outputs of the layer as PyTorch computes it."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 3, groups=groups), nn.ReLU(), nn.Conv2d(12, 4, 1)
    ).eval()
    graph = capture(model, torch.randn(2, 3, 5, 5))
    removal = parse_removal('ratio=0.5, only=["1"]')
    removed = removed_entries(graph, removal, Context())
    count = zero_filters(graph, removed)
    x = torch.randn(2, 8, 5, 5)
    layer = nn.ConvTranspose2d(8, 12, 3, groups=groups)
    layer.load_state_dict({"weight": graph.weight("1.weight"), "bias": graph.weight("1.bias")})
    silent = (layer(x).abs().amax((0, 2, 3)) == 0).sum()
    assert count == int(silent) == 6
    assert not (graph.weight("3.weight") == 0).any()  # what reads them is not zeroed


def test_the_entries_are_those_that_the_cut_leaves_out():
    graph = conv_graph()
    removed = removed_entries(graph, parse_removal("ratio=0.5"), Context())
    cut = run("prune-channels{ratio=0.5}", graph)
    for name, gone in removed.items():
        assert torch.equal(graph.weight(name)[~gone], cut.weight(name).flatten())
