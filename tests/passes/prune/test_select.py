"""Which groups go: exact MACs, targets, rounding, ties, and the errors for targets out of reach."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from models import EXAMPLES
from torch import nn

from planish.ir.capture import capture
from planish.ir.cost import cost
from planish.ir.errors import UsageError
from planish.passes.prune.budget import MacCounter
from planish.passes.prune.cut import cut
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.score.criteria import CRITERIA
from planish.passes.prune.score.importance import importance
from planish.passes.prune.select import Rounding, Selector, by_macs, by_ratio, damage


@cache
def captured(name: str):
    make, shape = {**EXAMPLES, "attention": (Attention, (5, 6))}[name]
    torch.manual_seed(0)
    return capture(make(), torch.randn(2, *shape))


class Attention(nn.Module):
    """Six query heads on three key heads: the attention's MACs are a sum of two products."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 24), nn.Linear(6, 12), nn.Linear(6, 12)
        self.out = nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [p(x).unflatten(2, (-1, 4)).transpose(1, 2) for p in (self.query, self.key, self.value)]
        y = nn.functional.scaled_dot_product_attention(*heads, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


def groups_of(name: str) -> Groups:
    return Groups(IndexGraph(captured(name).copy()))


def selector_of(name: str, scope: str = "layer", rounding: Rounding | None = None) -> Selector:
    groups = groups_of(name)
    savings = MacCounter(groups).savings(groups)
    return Selector(groups, importance(groups, CRITERIA["l1"]), scope, rounding or Rounding(), savings)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", [*EXAMPLES, "attention"])
def test_counted_macs_are_those_of_the_cut_graph(name, batch):
    groups = groups_of(name)
    counter, rng = MacCounter(groups, batch), np.random.default_rng(3)
    assert counter.full == cost(groups.index.graph, batch).macs
    alive = rng.random(groups.count) < 0.6
    for family in groups.families:
        alive[family.groups[0]] = True
    cut(groups.index, groups.alive_atoms(alive))
    assert counter.count(alive) == cost(groups.index.graph, batch).macs  # exact integers


def test_scores_are_mean_magnitudes_relative_to_the_family():
    """Group i of the first layer of the MLP: row i of its weight, column i of the next weight; the bias is silent."""
    groups = groups_of("mlp")
    w, v = (groups.index.graph.weight(n).detach().double() for n in ("0.weight", "2.weight"))
    l1 = [t.abs().mean(1) for t in (w, v.T)]
    l2 = [t.square().mean(1).sqrt() for t in (w, v.T)]
    family = groups.families[0]
    assert family.layer == "0"
    channels = groups.number[groups.index.channels["0.weight"]]
    # float64 sums in another order: 1e-12 is rounding
    for name, parts in (("l1", l1), ("l2", l2)):
        expected = sum(part / part.mean() for part in parts) / 2
        np.testing.assert_allclose(importance(groups, CRITERIA[name])[channels], expected, rtol=1e-12)


def test_vectors_speak_for_groups_without_a_matrix():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([3.0, 1.0, 2.0, 2.0]))

        def forward(self, x):
            return (x.mean(1, keepdim=True) * self.scale).mean(1)

    groups = Groups(IndexGraph(capture(Scaled(), torch.randn(2, 5))))
    assert importance(groups, CRITERIA["l1"]).tolist() == [1.5, 0.5, 1.0, 1.0]


def test_families_of_a_residual_net():
    """layer1's stream, its two inner layers, layer2's stream and its two inner layers."""
    families = {family.layer: len(family.groups) for family in groups_of("resnet").families}
    assert families == {
        "stem.0": 16,
        "layer1.0.conv1.0": 16,
        "layer1.1.conv1.0": 16,
        "layer2.0.conv1.0": 32,
        "layer2.0.conv2.0": 32,
        "layer2.1.conv1.0": 32,
    }


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_removal_is_one_sequence(scope):
    """Each step takes groups from one family and gives none back; MACs fall, and targets are met in their order."""
    selector = selector_of("mobilenet", scope)
    counter = MacCounter(selector.groups)
    for before, after in pairwise(selector.after(m) for m in range(len(selector) + 1)):
        assert (after <= before).all()
        assert (after < before).sum() == 1
    reached = [counter.count(by_macs(selector, counter, share)) for share in (0.9, 0.7, 0.5, 0.3)]
    assert reached == sorted(reached, reverse=True)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_macs_are_met_within_half_a_percent(name, scope):
    selector = selector_of(name, scope)
    counter = MacCounter(selector.groups)
    for share in (0.8, 0.5, 0.35):
        reached = counter.count(by_macs(selector, counter, share)) / counter.full
        assert abs(reached / share - 1) <= 0.005


def test_all_macs_means_nothing_goes():
    selector = selector_of("mlp")
    assert by_macs(selector, MacCounter(selector.groups), 1.0).all()


def test_macs_below_the_minimum():
    selector = selector_of("mlp")
    with pytest.raises(UsageError, match=r"macs 0.001 is below the reachable minimum of 0\.0"):
        by_macs(selector, MacCounter(selector.groups), 0.001)


def survivors(selector: Selector, alive: np.ndarray) -> dict[str, int]:
    return {family.layer: int(alive[family.groups].sum()) for family in selector.groups.families}


def test_ratio_is_the_share_removed_rounded_down():
    selector = selector_of("mlp")
    assert survivors(selector, by_ratio(selector, 0.25)) == {"0": 48, "2": 24}
    assert survivors(selector, by_ratio(selector, 0.01)) == {"0": 64, "2": 32}
    assert survivors(selector, by_ratio(selector, 0.99)) == {"0": 1, "2": 1}


@pytest.mark.parametrize(("ratio", "left"), [(0.5, (32, 16)), (0.6, (24, 16)), (0.1, (56, 32)), (0.8, (16, 8))])
def test_rounding_to_lanes_is_to_the_nearest_multiple(ratio, left):
    """64 and 32 channels: 0.6 leaves 26 and 13, nearest multiples of 8 are 24 and 16."""
    selector = selector_of("mlp", rounding=Rounding(8, explicit=True))
    assert tuple(survivors(selector, by_ratio(selector, ratio)).values()) == left


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_lanes_hold_for_macs_targets(scope):
    selector = selector_of("resnet", scope, Rounding(4))
    alive = by_macs(selector, MacCounter(selector.groups), 0.6)
    assert all(count % 4 == 0 for count in survivors(selector, alive).values())


def test_lanes_count_channels_not_groups():
    """A grouped conv that loses whole groups of 2 channels: 4 lanes are 2 groups."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=8), nn.Conv2d(16, 4, 1))
    groups = Groups(IndexGraph(capture(model, torch.randn(2, 3, 8, 8))))
    (family,) = groups.families
    assert (len(family.groups), family.indices, family.step(4)) == (8, (2,), 2)


def test_an_emptied_layer_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    groups = Groups(IndexGraph(capture(model, torch.randn(2, 5))))
    scores = importance(groups, CRITERIA["l1"])
    message = (
        "prune-channels: '0' has 6 output channels, ratio 0.5 rounded to 8 leaves 0; "
        "lower 'ratio' or list the layer in 'keep'."
    )
    with pytest.raises(UsageError) as caught:
        by_ratio(Selector(groups, scores, "layer", Rounding(8, explicit=True)), 0.5)
    assert str(caught.value) == message
    with pytest.raises(UsageError, match="'0' has 6 output channels, ratio 1 leaves 0"):
        by_ratio(Selector(groups, scores, "layer", Rounding()), 1.0)
    # the lanes of a target are no wish of the user: the narrow layer stays
    assert by_ratio(Selector(groups, scores, "layer", Rounding(8)), 0.5).all()


def test_global_ratio_counts_all_channels_and_leaves_a_tenth():
    selector = selector_of("mobilenet", "global")
    alive = by_ratio(selector, 0.4)
    assert abs((~alive).mean() - 0.4) <= 1 / len(alive)
    with pytest.raises(UsageError, match=r"ratio 0\.97 cannot be reached"):
        by_ratio(selector, 0.97)
    tight = by_ratio(selector, 0.88)
    for family in selector.groups.families:
        assert tight[family.groups].mean() >= 0.1


def test_damage_is_the_share_of_the_squares_left():
    assert damage(np.array([1.0, 2.0, 2.0, 4.0])).tolist() == [1 / 25, 4 / 24, 4 / 20, 1.0]
    assert damage(np.zeros(3)).tolist() == [1.0, 1.0, 1.0]


def test_global_prefers_the_layer_that_saves_more():
    """Equal scores everywhere: of two families of equal size the one with more MACs thins first."""
    groups = groups_of("mlp")
    selector = Selector(groups, np.ones(groups.count), "global", Rounding(), np.array([1.0, 100.0]))
    assert selector.after(10).tolist() == [64, 22]
    counter = MacCounter(groups)
    full = counter.full  # unit 0: 20 in, 32 out; unit 2: 64 in, 5 out
    np.testing.assert_allclose(counter.savings(groups), [(20 + 32) / full, (64 + 5) / full], rtol=1e-12)


def test_the_least_important_go_first_and_ties_break_by_index():
    groups = groups_of("mlp")
    scores = np.ones(groups.count)
    first = groups.families[0].groups
    scores[first[5]] = 0.5
    alive = by_ratio(Selector(groups, scores, "layer", Rounding()), 0.0625)  # 4 of 64
    assert np.flatnonzero(~alive[first]).tolist() == [0, 1, 2, 5]
