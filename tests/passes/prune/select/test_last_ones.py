"""A value between layers that holds a part of a family only is never left empty."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from example_graphs import example_graph
from torch import nn

from planish.ir.capture import capture
from planish.passes.base import Context
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.prune_channels import PruneChannels
from planish.passes.prune.select.last_ones import last_ones


class Halves(nn.Module):
    """The first four channels, which matter least, go through one pooling, the others through another."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.before.weight[:4] *= 1e-3
            self.after.weight[:, :4] *= 1e-3

    def forward(self, x):
        first, second = self.before(x).chunk(2, 1)
        return self.after(torch.cat([F.max_pool2d(first, 2), F.avg_pool2d(second, 2)], 1))


def captured():
    torch.manual_seed(0)
    return capture(Halves(), torch.randn(2, 3, 4, 4))


def test_the_most_important_group_of_each_part_goes_last():
    groups = Groups(IndexGraph(captured()))
    scores = np.array([1.0, 4.0, 2.0, 3.0, 8.0, 7.0, 6.0, 5.0])
    assert np.flatnonzero(last_ones(groups, scores)).tolist() == [1, 4]


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 0.7}, {"macs": 0.25}, {"ratio": 0.5, "scope": "global"}])
def test_both_halves_keep_a_channel(options):
    graph = captured()
    PruneChannels(**options).run(graph, Context())
    pooled = [node.meta["val"].shape[1] for node in graph.calls("max_pool2d", "avg_pool2d")]
    assert min(pooled) >= 1
    assert sum(pooled) == graph.weight("before.weight").shape[0] < 8
    assert graph(torch.randn(3, 3, 4, 4)).shape == (3, 2, 2, 2)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "mlp"])
def test_values_of_whole_families_need_no_care(name):
    groups = Groups(IndexGraph(example_graph(name)))
    assert not last_ones(groups, np.ones(groups.count)).any()
