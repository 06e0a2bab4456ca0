"""Relations and components against slow references that follow one index at a time."""

import itertools

import numpy as np
import pytest
import torch
from torch import fx

from planish.passes.prune.index.components import FREE, Components
from planish.passes.prune.index.factors import solve
from planish.passes.prune.index.relation import NoRule, Relation


def node() -> fx.Node:
    graph = fx.Graph()
    return graph.call_function(torch.ops.aten.relu.default, (graph.placeholder("x"),))


def dims(*sizes: int) -> list[np.ndarray]:
    ends = np.cumsum([0, *sizes])
    return [np.arange(a, b) for a, b in itertools.pairwise(ends)]


def partition(label: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(label == c).tolist()) for c in np.unique(label)}


def naive_partition(count: int, pairs) -> set[frozenset[int]]:
    """Groups by relabelling everything at each pair."""
    group = list(range(count))
    for a, b in pairs:
        old, new = group[a], group[b]
        group = [new if g == old else g for g in group]
    return partition(np.array(group))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_components_are_those_of_a_naive_merge(seed):
    rng = np.random.default_rng(seed)
    edges = [(rng.integers(0, 40, 6), rng.integers(0, 40, 6)) for _ in range(4)]
    components = Components(40)
    for edge in edges:  # merged one edge array at a time, as the solver does
        components.merge([edge])
    pairs = [(int(a), int(b)) for left, right in edges for a, b in zip(left, right, strict=True)]
    assert partition(components.label) == naive_partition(40, pairs)


def test_the_first_reason_survives_every_merge():
    components = Components(5)
    components.freeze([(np.array([0]), 7), (np.array([1]), 3), (np.array([0]), 9)])
    components.merge([(np.array([0]), np.array([1]))])
    components.merge([(np.array([1]), np.array([2]))])
    assert components.reason[components.label].tolist() == [3, 3, 3, FREE, FREE]


@pytest.mark.parametrize("live", ["group", "in"])
def test_edges_tie_equal_digits(live):
    """12 = 3 groups x 4: position p has the digits (p // 4, p % 4); 6 = 3 groups x 2."""
    wide, narrow, tail = dims(12, 6, 4)
    relation = Relation(
        node(),
        {"group": 3, "in": 4, "out": 2},
        [(wide, ("group", "in")), (narrow, ("group", "out")), (tail, ("in",))],
    )
    assert relation.contested() == ["group", "in", "out"]
    relation.settle_on(live)
    if live == "in":
        relation.settle_on("out")
    pairs = [(int(a), int(b)) for left, right in relation.edges() for a, b in zip(left, right, strict=True)]
    digits = {a: ("group", i // 4) if live == "group" else ("in", i % 4) for i, a in enumerate(wide.tolist())}
    digits |= {a: ("group", i // 2) if live == "group" else ("out", i % 2) for i, a in enumerate(narrow.tolist())}
    digits |= {a: ("tail", i) if live == "group" else ("in", i) for i, a in enumerate(tail.tolist())}
    expected = [(a, b) for a in digits for b in digits if digits[a] == digits[b]]
    assert naive_partition(22, pairs) == naive_partition(22, expected)
    assert [len(dim) for dim in relation.newly_dead_dims()] == ([4] if live == "group" else [])
    assert relation.newly_dead_dims() == []


def test_a_relation_refuses_extents_that_are_no_products():
    (dim,) = dims(10)
    with pytest.raises(NoRule, match="not products"):
        Relation(node(), {"a": 3, "b": 4}, [(dim, ("a", "b"))])


def test_solve_takes_the_factor_that_leaves_the_most_groups():
    (wide,) = dims(12)
    relation = Relation(node(), {"few": 2, "many": 6}, [(wide, ("few", "many"))])
    label = solve(12, [], [], [relation], [], 0).components.label
    assert partition(label) == {frozenset({i, i + 6}) for i in range(6)}


def test_solve_prefers_heads():
    wide, heads = dims(12, 2)
    relation = Relation(node(), {"head": 2, "inside": 6}, [(wide, ("head", "inside")), (heads, ("head",))])
    label = solve(14, [], [], [relation], [heads], 0).components.label
    assert partition(label) == {frozenset({*range(6 * h, 6 * h + 6), 12 + h}) for h in range(2)}


def test_solve_drops_a_factor_that_other_ties_make_trivial():
    """All six digits of `many` are one group already: only `few` can be thinned."""
    wide, other = dims(12, 6)
    relation = Relation(node(), {"few": 2, "many": 6}, [(wide, ("few", "many")), (other, ("many",))])
    edges = [(other[:-1], other[1:])]
    components = solve(18, edges, [], [relation], [], 4).components
    assert partition(components.label[wide]) == {frozenset(range(6)), frozenset(range(6, 12))}
    assert set(components.reason[components.label[other]]) == {4}
