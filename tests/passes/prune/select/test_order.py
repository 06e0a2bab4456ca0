"""The order of removal: damage, ties, and what each scope ranks together."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from selection_cases import captured, chosen, ranked, survivors

from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.select import order
from planish.passes.prune.select.isomorphism import classes
from planish.passes.prune.select.ladders import Ladders, Rounding
from planish.passes.prune.select.order import SCOPES, Steps, damage
from planish.passes.prune.select.quantities import count_macs, count_peak_memory
from planish.passes.prune.select.ranking import Ranking
from planish.passes.prune.select.request import Request


def made(name: str, scope: str, scores: np.ndarray | None = None, **options):
    """(ranking, ladders, steps) of a model."""
    groups, l1 = ranked(name)
    request = Request.of(groups, scope, shares={"macs": 0.5}, **options)
    ranking = Ranking(groups, l1 if scores is None else scores)
    ladders = Ladders(groups, request.bounds, request.rounding, request.sets)
    return ranking, ladders, Steps(ladders)


def sequence(name: str, scope: str):
    ranking, ladders, steps = made(name, scope)
    keys = {
        "layer": lambda: order.share_gone(steps),
        "isomorphic": lambda: order.class_share(steps, ranking),
        "global": lambda: order.per_saving(
            steps, order.harm(steps, ranking), count_macs(ranking).savings(ranking.sizes)
        ),
    }
    return ladders, steps.sort(keys[scope]())


def test_damage_is_the_share_of_the_squares_left():
    assert damage(np.array([1.0, 2.0, 2.0, 4.0])).tolist() == [1 / 25, 4 / 24, 4 / 20, 1.0]
    assert damage(np.zeros(3)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("scope", SCOPES)
def test_removal_is_one_sequence(scope):
    """Each step takes one group from one family and gives none back, down to the floor of every family."""
    ladders, steps = sequence("mobilenet", scope)
    states = [ladders.survivors(steps.after(count)) for count in range(len(steps) + 1)]
    assert (states[0] == ladders.sizes).all()
    assert (states[-1] == ladders.bounds.least).all()
    for before, after in pairwise(states):
        assert sorted((before - after).tolist())[-2:] == [0, 1]


def test_the_least_important_go_first_and_ties_break_by_index():
    groups, _ = ranked("mlp")
    scores = np.ones(groups.count)
    first = groups.families[0].groups
    scores[first[5]] = 0.5
    ranking = Ranking(groups, scores)
    alive = ranking.alive(ranking.sizes - [4, 0])
    assert np.flatnonzero(~alive[first]).tolist() == [0, 1, 2, 5]


def test_layer_thins_all_families_by_the_same_share():
    ladders, steps = sequence("mlp", "layer")
    for count in range(0, len(steps), 7):
        left = ladders.survivors(steps.after(count)) / ladders.sizes
        assert np.ptp(left) <= 1 / ladders.sizes.min()


def test_global_prefers_what_saves_more():
    """Equal scores: of two families the one that saves a hundred times as much thins to what its damage allows."""
    groups, _ = ranked("mlp")
    _, ladders, steps = made("mlp", "global", np.ones(groups.count))
    keys = order.per_saving(steps, order.harm(steps, Ranking(groups, np.ones(groups.count))), np.array([1.0, 100.0]))
    assert ladders.survivors(steps.sort(keys).after(10)).tolist() == [64, 22]


def test_classes_are_families_of_the_same_structure():
    """Inner layers of blocks of equal form; streams differ in the layers that read them."""
    groups, _ = ranked("resnet")
    names = [family.layer for family in groups.families]
    together: dict[int, set[str]] = {}
    for name, number in zip(names, classes(groups).tolist(), strict=True):
        together.setdefault(number, set()).add(name)
    inner = {"layer1.0.conv1.0", "layer1.1.conv1.0", "layer2.0.conv1.0", "layer2.1.conv1.0"}
    assert sorted(map(sorted, together.values())) == sorted(map(sorted, [inner, {"stem.0"}, {"layer2.0.conv2.0"}]))


def test_classes_do_not_look_at_widths_or_names():
    groups, _ = ranked("mobilenet")
    found = dict(zip((f.layer for f in groups.families), classes(groups).tolist(), strict=True))
    hidden = {found[f"blocks.{block}.expand.0"] for block in range(4)}
    assert len(hidden) == 1  # 32, 48, 48 and 64 channels


def test_isomorphic_ranks_a_class_together():
    """Where one of four alike layers scores lowest by far, its groups go first, and the share is that of the class."""
    groups, _ = ranked("mobilenet")
    scores = np.random.default_rng(0).uniform(1, 2, groups.count)
    names = [family.layer for family in groups.families]
    weak = names.index("blocks.1.expand.0")
    scores[groups.families[weak].groups] /= 100
    ranking, ladders, steps = made("mobilenet", "isomorphic", scores)
    left = ladders.survivors(steps.sort(order.class_share(steps, ranking)).after(60))
    hidden = [names.index(f"blocks.{block}.expand.0") for block in range(4)]
    assert left[weak] < ladders.sizes[weak]
    assert all(left[number] == ladders.sizes[number] for number in hidden if number != weak)
    gone = 1 - left / ladders.sizes
    share = 1 - left[hidden].sum() / ladders.sizes[hidden].sum()
    others = np.setdiff1d(np.arange(len(names)), hidden)
    np.testing.assert_allclose(gone[others], share, atol=1 / ladders.sizes[others].min())


def test_only_what_is_in_use_at_the_peak_goes_for_peak_memory():
    """Down to where it moves to other values; one removal never raises the peak."""
    ranking, ladders, steps = made("resnet", "global")
    memory = count_peak_memory(ranking)
    found = order.lowering_the_peak(steps, order.harm(steps, ranking), memory)
    peaks = [int(memory(ladders.survivors(found.after(count)))) for count in range(len(found) + 1)]
    assert all(before >= after for before, after in pairwise(peaks))
    at = next(count for count, peak in enumerate(peaks) if peak <= 0.7 * peaks[0])
    left = dict(zip((f.layer for f in ranking.groups.families), ladders.survivors(found.after(at)), strict=True))
    assert left["layer2.0.conv1.0"] == left["layer2.1.conv1.0"] == left["layer2.0.conv2.0"] == 32  # later, and smaller
    assert len(found) == len(steps.units)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_lower_target_keeps_less(scope):
    kept = [chosen("efficientnet", scope, shares={"macs": share}).reached["macs"] for share in (0.9, 0.7, 0.5, 0.3)]
    assert kept == sorted(kept, reverse=True)


def test_lanes_count_channels_not_groups():
    """A conv that loses whole groups of two channels: four lanes are two groups."""
    groups = Groups(IndexGraph(captured("grouped")))
    for family in groups.families:
        step = family.step(8)
        assert all(step * count % 8 == 0 for count in family.indices)
        assert not any(all(less * count % 8 == 0 for count in family.indices) for less in range(1, step))


def test_levels_fill_whole_lanes_down_to_one_vector():
    _, ladders, steps = made("resnet", "layer", rounding=Rounding(8))
    number = int(np.argmax(ladders.sizes))
    family = ladders.members[number][0] if len(ladders) == len(ladders.sizes) else number
    counts = [ladders.sizes[family] - level for level in ladders.aligned[ladders.unit[family]]]
    assert counts == [32, 24, 16, 8]
    assert steps.is_narrow.any()
    explicit = replace(ladders.rounding, explicit=True)
    assert not Steps(Ladders(ranked("resnet")[0], ladders.bounds, explicit)).is_narrow.any()


def test_a_selection_is_deterministic():
    one, other = (survivors("densenet", chosen("densenet", "global", shares={"params": 0.6})) for _ in range(2))
    assert one == other
