"""What a cut would leave, counted without cutting, against `ir.cost` of the graph that was cut."""

import numpy as np
import pytest
from selection_cases import MODELS, groups_of

from planish.ir.cost import cost
from planish.passes.prune.cut import cut
from planish.passes.prune.select.quantities import PeakMemory, count_bytes, count_macs, count_params, count_peak_memory
from planish.passes.prune.select.ranking import Ranking

COUNTERS = (count_macs, count_params, count_bytes, count_peak_memory)


def costs(graph, batch):
    found = cost(graph, batch)
    return [found.macs, found.params, found.bytes, found.peak_bytes]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_cut_graph(name, batch):
    """Exact integers, for survivors drawn at random in every family and a random order of removal."""
    groups, rng = groups_of(name), np.random.default_rng(3)
    ranking = Ranking(groups, rng.random(groups.count))
    counters = [count(ranking, batch) for count in COUNTERS]
    assert [counter.full for counter in counters] == costs(groups.index.graph, batch)
    survivors = np.array([rng.integers(1, size + 1) for size in ranking.sizes])
    both = np.stack([survivors, ranking.sizes])
    predicted = [counter(both).tolist() for counter in counters]
    cut(groups.index, groups.alive_atoms(ranking.alive(survivors)))
    assert predicted == [[cut_, c.full] for cut_, c in zip(costs(groups.index.graph, batch), counters, strict=True)]


@pytest.mark.parametrize("name", ["mlp", "resnet", "densenet", "halves", "attention"])
def test_savings_are_what_one_group_takes(name):
    """Against the difference that one group makes; to first order: products of thin dims overlap in 1/width."""
    groups = groups_of(name)
    ranking = Ranking(groups, np.random.default_rng(0).random(groups.count))
    for counter in (count(ranking) for count in COUNTERS[:3]):
        savings = counter.savings(ranking.sizes)
        for family, size in enumerate(ranking.sizes):
            whole = ranking.sizes.copy()
            whole[family] = 0  # linear in a family that no product has twice
            twice = (counter.full - int(counter(whole))) / counter.full / size
            assert twice * 0.99 <= savings[family] <= 2 * twice


def test_peak_savings_are_of_values_in_use_at_the_worst_moment():
    """The input, 16 maps of 64 positions and their relu are the peak of this net; its other layers come later."""
    groups = groups_of("resnet")
    ranking = Ranking(groups, np.zeros(groups.count))
    memory = count_peak_memory(ranking)
    assert isinstance(memory, PeakMemory)
    profile, savings = memory.profile(ranking.sizes), memory.savings(ranking.sizes)
    assert profile.max() == memory.full
    saving = {family.layer for family, saved in zip(groups.families, savings, strict=True) if saved > 0}
    assert saving == {"stem.0", "layer1.0.conv1.0", "layer1.1.conv1.0"}
    for family in groups.families:
        if family.layer not in saving:
            thin = ranking.sizes.copy()
            thin[groups.families.index(family)] = 1
            assert memory(thin) == memory.full
