"""Equal counts per group of a grouped conv: which channels go together, and what is left of the weights."""

import numpy as np
import pytest
import torch
from example_graphs import example_graph
from torch import nn

from planish.ir.capture import capture
from planish.ir.graph import Graph
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.rematch import pieces_of, rematch
from planish.passes.prune.score.importance import importance
from planish.passes.prune.survivors import Survivors


class Grouped(nn.Module):
    """12 channels in 3 groups of 4, read by a conv that makes 2 channels a group."""

    def __init__(self, conv: nn.Module, read: int):
        super().__init__()
        self.before, self.grouped, self.after = nn.Conv2d(3, 12, 1), conv, nn.Conv2d(read, 2, 1)

    def forward(self, x):
        return self.after(torch.relu(self.grouped(torch.relu(self.before(x)))))


def captured(conv: nn.Module, read: int) -> Graph:
    torch.manual_seed(0)
    return capture(Grouped(conv, read), torch.randn(2, 3, 6, 6))


CONVS = {
    "plain": (lambda: nn.Conv2d(12, 6, 3, groups=3), 6),
    "transposed": (lambda: nn.ConvTranspose2d(12, 6, 2, groups=3), 6),
    "norm": (lambda: nn.GroupNorm(3, 12), 12),
}


def inputs_of(groups: Groups) -> list[set[int]]:
    """For every group that takes input channels, which ones."""
    number = groups.number[groups.index.channels["before.weight"]]
    return [set(np.flatnonzero(number == g).tolist()) for g in range(groups.count) if (number == g).any()]


@pytest.mark.parametrize("name", CONVS)
def test_each_group_of_a_conv_gives_its_least_important_channel(name):
    make, read = CONVS[name]
    groups = Groups(IndexGraph(captured(make(), read)))
    pieces = pieces_of(groups)
    first = groups.index.channels["before.weight"]
    assert inputs_of(groups) == [{0, 4, 8}, {1, 5, 9}, {2, 6, 10}, {3, 7, 11}]  # the same position in each group
    wanted = np.array([3, 1, 2, 0, 0, 1, 2, 3, 2, 3, 0, 1])  # importance of the 12 channels
    scores = np.zeros(pieces.count)
    scores[pieces.number[first]] = wanted
    matched = rematch(groups, pieces, scores)
    assert inputs_of(matched) == [{3, 4, 10}, {1, 5, 11}, {2, 6, 8}, {0, 7, 9}]
    assert [len(f.groups) for f in matched.families] == [len(f.groups) for f in groups.families]


def test_equal_scores_keep_the_order():
    groups = Groups(IndexGraph(captured(nn.Conv2d(12, 6, 3, groups=3), 6)))
    pieces = pieces_of(groups)
    assert inputs_of(rematch(groups, pieces, np.zeros(pieces.count))) == inputs_of(groups)


def test_a_weight_loses_other_inputs_in_each_group():
    """Against a conv that is taken apart by hand into one conv for each group."""
    graph = captured(nn.Conv2d(12, 6, 3, groups=3), 6)
    whole = graph.weight("grouped.weight").detach().clone()
    index = IndexGraph(graph)
    groups = Groups(index)
    pieces = pieces_of(groups)
    groups = rematch(groups, pieces, np.random.default_rng(0).random(pieces.count))
    alive = np.ones(groups.count, bool)
    number = groups.number[index.channels["before.weight"]]
    alive[np.unique(number)[:2]] = False
    kept = np.flatnonzero(alive[number]).reshape(3, 2)
    left = Survivors.of(index, groups.alive_atoms(alive)).take("grouped.weight", whole)
    by_hand = [whole[2 * g : 2 * g + 2][:, kept[g] - 4 * g] for g in range(3)]
    assert torch.equal(left, torch.cat(by_hand))
    assert len({tuple(row) for row in kept - 4 * np.arange(3)[:, None]}) > 1


def test_a_weight_that_is_read_twice_loses_the_same_inputs_everywhere():
    class Twice(Grouped):
        def forward(self, x):
            y = torch.relu(self.before(x))
            return self.after(self.grouped(y) + self.grouped(y.flip(1)))

    torch.manual_seed(0)
    index = IndexGraph(capture(Twice(nn.Conv2d(12, 6, 3, groups=3), 6), torch.randn(2, 3, 6, 6)))
    assert index.blocked == {}


def test_models_without_groups_have_no_pieces():
    groups = Groups(IndexGraph(example_graph("resnet")))
    assert pieces_of(groups) is groups
    assert rematch(groups, groups, np.zeros(groups.count)) is groups


@pytest.mark.parametrize("name", CONVS)
def test_more_importance_stays_than_with_equal_indices(name):
    make, read = CONVS[name]
    groups = Groups(IndexGraph(captured(make(), read)))
    pieces = pieces_of(groups)
    scores = importance(pieces, "l1")

    def left(choice: Groups) -> float:
        """The importance that stays when the least important half of every family goes."""
        owner = np.zeros(pieces.count, int)
        owner[pieces.number[pieces.number >= 0]] = choice.number[pieces.number >= 0]
        total = np.bincount(owner, scores, choice.count)
        return sum(float(np.sort(total[family.groups])[len(family.groups) // 2 :].sum()) for family in choice.families)

    assert left(rematch(groups, pieces, scores)) > left(groups)
