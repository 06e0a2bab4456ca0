"""From groups with scores to the groups that survive: one call."""

from dataclasses import dataclass

import numpy as np

from ..groups import Groups
from . import by_share, order
from .bounds import LEAST_SHARE
from .ladders import Ladders
from .last_ones import last_ones
from .order import Sequence, Steps
from .quantities import PeakMemory
from .ranking import Ranking
from .request import PASS, Request
from .search import Found, Search
from .targets import TOLERANCE, Target, Targets, refuse_gap, refuse_minimum


@dataclass(frozen=True)
class Choice:
    """What a selection came to.

    survivors  of each family
    alive      for every group whether it survives
    reached    by target: the share of the quantity that remains (of channels that is gone for `ratio`)
    bound      the target that was met; the others are below theirs
    off_lanes  families that leave the lanes of a target so that it is met
    """

    survivors: np.ndarray
    alive: np.ndarray
    reached: dict[str, float]
    bound: str
    off_lanes: tuple[int, ...]


def choose(groups: Groups, scores: np.ndarray, request: Request) -> Choice:
    """The groups that survive. Deterministic; a lower target never keeps more of the sequence of removals.

    scores: the importance of every group

    Raises UsageError for a target below what is reachable or in a gap between two reachable values, and for a ratio
    that would leave a layer empty or that floors do not allow.
    """
    last = last_ones(groups, scores)
    ranking = Ranking(groups, scores, last)
    bounds = request.bounds.keeping(np.bincount(groups.family[last], minlength=len(groups.families)))
    ladders = Ladders(groups, bounds, request.rounding, request.sets)
    steps = Steps(ladders)
    if request.ratio is not None:
        return _by_ratio(ranking, ladders, steps, request)
    asked = Targets.of(ranking, request.shares)
    targets = asked.that_ask()
    search = _final_search(ranking, ladders, steps, targets, request.scope)
    found = search.run()
    survivors = ladders.survivors(found.levels)
    _check(found, search, targets.binding(survivors), request)
    reached = {target.name: float(target.reached(survivors)) for target in asked.targets}
    off_lanes = [int(f) for u in _off_lanes(found, ladders) for f in ladders.members[u]]
    return Choice(
        survivors, ranking.alive(survivors), reached, targets.binding(survivors).name, tuple(sorted(off_lanes))
    )


def _by_ratio(ranking: Ranking, ladders: Ladders, steps: Steps, request: Request) -> Choice:
    assert request.ratio is not None
    if request.scope == "layer":
        survivors = by_share.of_every_layer(ladders, ranking.groups.families, request.ratio, PASS)
    else:
        sequence = _sequence(ranking, steps, request.scope, None)
        survivors = by_share.of_all_layers(ladders, sequence, request.ratio, PASS)
    gone = 1 - float(survivors.sum()) / max(ranking.groups.count, 1)
    return Choice(survivors, ranking.alive(survivors), {"ratio": gone}, "ratio", ())


def _sequence(ranking: Ranking, steps: Steps, scope: str, target: Target | None) -> Sequence:
    """The sequence of removals; in scope `global` by what each step saves of the target (of channels without one)."""
    if scope == "layer":
        return steps.sort(order.share_gone(steps))
    if scope == "isomorphic":
        return steps.sort(order.class_share(steps, ranking))
    harm = order.harm(steps, ranking)
    if target is None:
        return steps.sort(order.per_saving(steps, harm, np.ones(len(ranking.sizes))))
    if isinstance(target.quantity, PeakMemory):
        return order.lowering_the_peak(steps, harm, target.quantity)
    return steps.sort(order.per_saving(steps, harm, target.quantity.savings(ranking.sizes)))


def _final_search(ranking: Ranking, ladders: Ladders, steps: Steps, targets: Targets, scope: str) -> Search:
    """The search along the sequence of the target that binds.

    That is the one at whose place in its own sequence the others hold too. Where there is none, the one that breaks the
    others least comes first, and the others go on from its place, each in its own sequence.
    """
    base = np.zeros(len(ladders), np.int64)
    todo = list(targets.targets)
    sequences = {target.name: _sequence(ranking, steps, scope, target) for target in todo}
    while True:
        searches = [Search(ladders, sequences[target.name], Targets([target]), base) for target in todo]
        places = [search.after(search.place()) for search in searches]
        broken = [float(targets(ladders.survivors(levels))) for levels in places]
        best = min(range(len(todo)), key=broken.__getitem__)
        if broken[best] <= 1 or len(todo) == 1:
            return Search(ladders, searches[best].sequence, targets, base)
        base = places[best]
        del todo[best]


def _check(found: Found, search: Search, target: Target, request: Request) -> None:
    """Raise UsageError where the targets are not met."""
    starts_below = found.ratio <= 1 and not found.levels.any()
    if found.is_met or starts_below:
        return
    least = search.ladders.survivors(search.after(len(search.sequence)))
    if (excess := float(search.targets(least))) > 1 + TOLERANCE:
        worst = search.targets.binding(least)
        raise refuse_minimum(PASS, worst, excess * worst.share, _causes(request))
    lanes = request.rounding
    advice = (
        f"ask for one of them, or lower 'round-to' from {lanes.lanes}" if lanes.lanes > 1 else "ask for one of them"
    )
    below, above = (None if ratio is None else ratio * target.share for ratio in (found.below, found.above))
    raise refuse_gap(PASS, target, below, above, advice)


def _causes(request: Request) -> list[str]:
    """What keeps a model from becoming thinner."""
    causes = ["what holds the model's inputs and outputs"]
    causes.append("one channel of every layer" if request.scope == "layer" else f"{LEAST_SHARE:.0%} of every layer")
    if request.bounds.is_protected.any():
        causes.append("what 'floor' and 'only' protect")
    if request.rounding.explicit and request.rounding.lanes > 1:
        causes.append(f"{request.rounding.lanes} channels of every layer, by 'round-to',")
    return causes


def _off_lanes(found: Found, ladders: Ladders) -> list[int]:
    """The units that are at a level which does not fill whole lanes."""
    return [unit for unit, level in enumerate(found.levels) if level not in ladders.aligned[unit]]
