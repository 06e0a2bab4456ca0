"""mix-precision: a precision for every layer, so that the model is within a budget at the least loss."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ....ir import rewrite
from ....ir.cost import cost
from ....ir.errors import UsageError
from ....ir.graph import Graph
from ...base import Context, Pass, Result, Skip
from ...measure import difference_from, measure_for
from ..lower.lower_integers import LowerIntegers
from ..lower.lower_weights import LowerWeights
from .knapsack import Budget, choose
from .precisions import PRECISIONS, Candidate, candidates
from .reference import float_form
from .returned import at_width, without

_BUDGETS = ("bytes", "latency", "drop")
_HALVINGS = 16  # of the loss that is allowed, for `drop`


@dataclass(frozen=True)
class MixPrecision(Pass):
    """Give each quantized layer the precision that a budget allows at the least loss, float if that is best.

    before:  %y = conv2d(%xq, %wq, b)     in every layer
    after:   %y = conv2d(%xq, %wq, b)     int8: weight and input quantized, computed in integers
             %y = linear(%x, %wq, b)      int4: a linear layer's weight alone, in 4 bits (lower-weights packs it)
             %y = conv2d(%x, w, b)        float
    skips:   a layer whose scales are not one per channel, whose input is not quantized, or whose weight is shared: it
             stays as it is; with `latency`, a precision that is not faster than float

    Losses are what quantize-sensitivity measures: the float model with one layer alone at a precision. They are taken
    to add up. Bytes are those of the graph behind lower-integers and lower-weights, which a copy goes through. With
    `drop` the smallest model is searched whose own score keeps to it.

    Raises UsageError for a budget that cannot be met, naming the least one that can.
    """

    name: ClassVar[str] = "mix-precision"
    requires: ClassVar[frozenset[str]] = frozenset({"calibrated"})
    refuses: ClassVar[frozenset[str]] = frozenset({"weights-rounded", "bias-corrected"})  # there is no float model left

    bytes: float | None = None
    """The share of the float model's bytes that may remain."""
    latency: float | None = None
    """The share of the float layers' time on the target that may remain, in (0, 1]. Times are measured layer by layer,
    each by itself between values in its own precision (Context.latency). No layer gets a precision in which it is not
    faster than in float."""
    drop: float | None = None
    """By itself: how much lower than in float the score may be, in the units of `evaluate`."""
    precisions: tuple[str, ...] = PRECISIONS
    """Which ones a layer may have: int8, int4 (linear layers), float."""

    def __post_init__(self) -> None:
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if not given:
            raise UsageError(self.name, "no budget is given", "expected bytes, latency or drop")
        if self.drop is not None and len(given) > 1:
            raise UsageError(self.name, f"'drop' stands beside '{given[0]}'", "expected one or the other")
        for label in ("bytes", "latency"):
            if (share := getattr(self, label)) is not None and not 0 < share <= 1:
                raise UsageError(self.name, f"'{label}' is {share:g}", "expected a share above 0 and up to 1")
        if self.drop is not None and not self.drop >= 0:
            raise UsageError(self.name, f"'drop' is {self.drop:g}", "expected 0 or more")
        if not self.precisions or (unknown := sorted(set(self.precisions) - set(PRECISIONS))):
            what = f"unknown precision '{unknown[0]}'" if self.precisions else "'precisions' is empty"
            raise UsageError(self.name, what, f"expected some of {', '.join(PRECISIONS)}")

    def needed(self) -> frozenset[str]:
        wanted = {"drop": {"data", "evaluate"}, "latency": {"latency"}}
        found = {need for label, needs in wanted.items() if getattr(self, label) is not None for need in needs}
        return frozenset(found)

    def run(self, graph: Graph, ctx: Context) -> Result:
        if not ctx.fuel.take():
            return Result(0)
        work = graph.copy().eval()
        whole = float_form(work)
        measure = (
            difference_from(whole, ctx, self.name) if self.drop is not None else measure_for(whole, ctx, self.name)
        )
        times = ctx.latency if self.latency is not None else None
        found, skipped = candidates(work, whole, self.precisions, measure, times, ctx.progress, self.name)
        total = cost(whole).bytes
        choice = self._chosen(work, whole, found, total, ctx)
        changed = _apply(graph, found, choice)
        rewrite.finish(graph)
        sizes = [total, _lowered_bytes(work, found, choice)]
        return Result(changed, tuple(skipped) + _slower(found), _details(found, choice, sizes, self.latency))

    def _chosen(self, work: Graph, whole: Graph, found: list[Candidate], total: int, ctx: Context) -> list[int]:
        losses = [[option.loss for option in one.options] for one in found]
        sizes = [[option.bytes for option in one.options] for one in found]
        if self.drop is not None:
            return self._within_drop(work, whole, found, losses, sizes, ctx)
        budgets: dict[str, Budget] = {}
        if self.bytes is not None:
            others = total - sum(one.float_bytes for one in found)
            budgets["bytes"] = Budget(sizes, self.bytes * total - others)
        if self.latency is not None:
            times = [[option.milliseconds or 0.0 for option in one.options] for one in found]
            budgets["latency"] = Budget(times, self.latency * sum(one.float_milliseconds or 0.0 for one in found))
        return self._within(budgets, losses, work, found, total)

    def _within(
        self, budgets: dict[str, Budget], losses: list, work: Graph, found: list[Candidate], total: int
    ) -> list[int]:
        """The best choice, checked against the bytes of the lowered graph: what its other ops hold (tables, factors of
        means) depends on the choice, and comes off the budget until it fits."""
        while (choice := choose(losses, list(budgets.values()))) is not None:
            over = _lowered_bytes(work, found, choice) - self.bytes * total if self.bytes is not None else 0.0
            if over <= 0:
                return choice
            budgets = budgets | {"bytes": replace(budgets["bytes"], most=budgets["bytes"].most - over)}
        raise self._unreachable(budgets, total)

    def _unreachable(self, budgets: dict[str, Budget], total: int) -> UsageError:
        for label, budget in budgets.items():
            if budget.least > budget.most:
                share = getattr(self, label)
                full = total if label == "bytes" else budget.most / share
                least = (budget.least + (share * total - budget.most if label == "bytes" else 0)) / full
                what = f"{label} {share:g} is below the reachable minimum of {least:.4g}"
                return UsageError(self.name, what, f"raise '{label}' or allow more 'precisions'")
        return UsageError(self.name, "no choice of precisions meets bytes and latency together", "raise one of them")

    def _within_drop(
        self, work: Graph, whole: Graph, found: list[Candidate], losses: list, sizes: list, ctx: Context
    ) -> list[int]:
        """The smallest model whose own score is good enough, by bisection over the sum of losses that is allowed."""
        score = measure_for(whole, ctx, self.name)
        least = score.of(whole) - (self.drop or 0.0)
        worst = sum(map(max, losses))
        choices: dict[int, list[int]] = {}

        def is_good(step: int) -> bool:
            """The less is allowed the greater the step; the last allows what cannot be avoided."""
            most = worst * 0.5**step if step < _HALVINGS else sum(map(min, losses))
            choices[step] = choose(sizes, [Budget(losses, most)]) or [_best(row) for row in losses]
            trial = work.copy()
            _apply(trial, found, choices[step])
            return score.of(trial) >= least

        low, high = 0, _HALVINGS
        while low < high:  # the first step that is good; the last one is, where float is allowed
            middle = (low + high) // 2
            low, high = (low, middle) if is_good(middle) else (middle + 1, high)
        if low not in choices and not is_good(low):
            what = f"no mix of {', '.join(self.precisions)} has a score of {least:g}"
            raise UsageError(self.name, what, "allow a greater 'drop', or float")
        return choices[low]


def _best(losses: list[float]) -> int:
    return losses.index(min(losses))


def _apply(graph: Graph, found: list[Candidate], choice: list[int]) -> int:
    """Give the layers what was chosen; how many are not as they were."""
    chosen = [(one, one.options[at]) for one, at in zip(found, choice, strict=True)]
    changed = 0
    for one, option in chosen:
        if option.width is not None:
            changed += option.precision != "int8" or option.width != one.width
            at_width(graph, one.layer, option.width)
        else:
            changed += 1
    by_name = {name: [one.layer for one, option in chosen if option.precision == name] for name in PRECISIONS}
    without(graph, by_name["float"], by_name["int4"])
    return changed


def _lowered_bytes(work: Graph, found: list[Candidate], choice: list[int]) -> int:
    """Of the graph that lower-integers and lower-weights would make of this choice."""
    trial = work.copy()
    _apply(trial, found, choice)
    rewrite.finish(trial)
    for entry in (LowerIntegers(), LowerWeights()):
        entry.run(trial, Context())
    return cost(trial).bytes


def _slower(found: list[Candidate]) -> tuple[Skip, ...]:
    """What a layer does not get because it would not be faster."""
    return tuple(
        Skip.at(one.layer.product, f"{name} takes {taken:.3g} ms, float {one.float_milliseconds:.3g} ms; not faster")
        for one in found
        for name, taken in one.slower
    )


def _details(found: list[Candidate], choice: list[int], sizes: list[int], latency: float | None) -> dict[str, Any]:
    chosen = [one.options[at] for one, at in zip(found, choice, strict=True)]
    rows = [
        {"layer": one.layer.name, "precision": o.precision, "loss": o.loss, "bytes": o.bytes, "ms": o.milliseconds}
        for one, o in zip(found, chosen, strict=True)
    ]
    table = {
        "title": f"{sizes[1]} of {sizes[0]} bytes remain",
        "columns": ["layer", "precision", "loss", "bytes", "ms"],
        "rows": [
            [row["layer"], row["precision"], f"{row['loss']:.3g}", row["bytes"], "" if row["ms"] is None else row["ms"]]
            for row in rows
        ],
    }
    facts: dict[str, Any] = {"bytes": sizes, "loss": sum(o.loss for o in chosen)}
    if latency is not None:
        times = [one.float_milliseconds for one in found], [option.milliseconds for option in chosen]
        before, after = (sum(taken or 0.0 for taken in column) for column in times)
        facts["milliseconds"] = [before, after]
    return {**facts, "layers": rows, "table": table}
