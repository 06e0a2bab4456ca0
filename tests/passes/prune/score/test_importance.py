"""Normalisers against scipy, and what `importance` refuses."""

import numpy as np
import pytest
import scipy.stats
from score_cases import make_batches, make_case

from planish.ir.errors import UsageError
from planish.passes.base import Context
from planish.passes.prune.score.evidence import Evidence, gather
from planish.passes.prune.score.importance import importance
from planish.passes.prune.score.normalizers import NORMALIZERS, Spread

VALUES = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0])
FAMILIES = np.array([2, 7, 2, 7, 2, 7, 2])

# Sums of four numbers in another order: a few units in the last place.
CLOSE = {"rtol": 1e-14, "atol": 1e-15}

EXPECTED = {
    "mean": lambda v: v / v.mean(),
    "max": lambda v: v / v.max(),
    "sum": lambda v: v / v.sum(),
    "standard": scipy.stats.zscore,
    "gaussian": lambda v: scipy.stats.norm.cdf(v, v.mean(), v.std()),
    "none": lambda v: v,
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers(name):
    found = NORMALIZERS[name](Spread(VALUES, FAMILIES))
    for family in (2, 7):
        own = np.equal(FAMILIES, family)
        np.testing.assert_allclose(found[own], EXPECTED[name](VALUES[own]), **CLOSE)


@pytest.mark.parametrize(("name", "value"), [("mean", 0), ("max", 0), ("sum", 0), ("standard", 0), ("gaussian", 0.5)])
def test_a_family_without_any_difference(name, value):
    assert np.array_equal(NORMALIZERS[name](Spread(np.zeros(3), np.zeros(3, int))), np.full(3, value))
    thirds = NORMALIZERS[name](Spread(np.full(3, 0.1), np.zeros(3, int)))  # their mean is no longer 0.1
    assert len(np.unique(thirds)) == 1
    if name in ("standard", "gaussian"):
        assert thirds[0] == value


@pytest.mark.parametrize("name", NORMALIZERS)
def test_every_normalizer_gives_scores_that_are_not_negative(name):
    case = make_case("mlp")
    scores = importance(case.groups, "l1", normalizer=name)
    assert scores.min() >= 0
    plain = importance(case.groups, "lamp", normalizer="none")
    order = importance(case.groups, "lamp", normalizer=name)
    for family in case.groups.families:
        assert len(np.unique(order[family.groups])) == len(family.groups) == len(np.unique(plain[family.groups]))


@pytest.mark.parametrize(
    ("criterion", "normalizer", "message"),
    [
        ("tailor", "mean", "importance: unknown importance 'tailor'; did you mean 'taylor'?"),
        ("l1", "rank", "importance: unknown normalizer 'rank'; known: mean, max, sum, standard, gaussian, none."),
        (
            "taylor",
            "mean",
            "importance: there is no 'gradient' in the evidence; "
            "call gather(graph, ctx, criterion, where) for this criterion first.",
        ),
    ],
)
def test_refusals(criterion, normalizer, message):
    with pytest.raises(UsageError) as caught:
        importance(make_case("mlp").groups, criterion, Evidence(), normalizer)
    assert str(caught.value) == message


def test_without_a_normalizer_silent_groups_cannot_be_ranked():
    case = make_case("mlp")
    evidence = gather(case.graph, Context(data=make_batches("mlp", 1)), "apoz", "test")
    with pytest.raises(UsageError, match=r"it says nothing about the channels of '0', and without a normaliser"):
        importance(case.groups, "apoz", evidence, "none")
