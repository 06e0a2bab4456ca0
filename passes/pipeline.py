"""Pipeline: passes in order, checked before anything runs, verified after each, all or nothing."""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..ir.cost import Cost, cost
from ..ir.errors import PassError, PlanishError, UsageError, first_line
from ..ir.graph import Graph
from ..ir.shapes import TensorSpec
from ..ir.verify import has_nan, verify
from .base import Context, Pass, Result
from .pipeline_text import load_all, parse, parse_toml, to_toml
from .sparsity import check_zeros, masks

# What a model gets when no recipe is given: nothing that changes its answers.
DEFAULT_RECIPE = "canonicalize, fold-batch-norm"

_MISSING = {
    "data": "no data was given; pass data=loader",
    "target": "no target was given; pass target=...",
    "evaluate": "no evaluation function was given; pass evaluate=function",
    "latency": "nothing measures latency; pass latency=function",
}


@dataclass(frozen=True)
class Step:
    """What one pass did: its text, result, seconds, and the graph's cost after it."""

    name: str
    result: Result
    seconds: float
    cost: Cost


@dataclass(frozen=True)
class Outcome:
    """A pipeline's new graph and what each pass did to it.

    before  the cost of the graph that went in
    origin  that graph itself, for `rebind`
    """

    graph: Graph
    steps: tuple[Step, ...]
    before: Cost = field(repr=False)
    origin: Graph = field(repr=False)


class Pipeline:
    """An ordered list of passes.

    `Pipeline.parse("fold-batch-norm, prune-channels{macs=0.7}")`; `str(pipeline)` gives the text back.
    """

    def __init__(self, passes: Iterable[Pass] = ()):
        self.passes = tuple(passes)

    @staticmethod
    def parse(text: "str | Pipeline | Iterable[Pass]") -> "Pipeline":
        """From one line of text, a path to a .toml file, or passes. Raises UsageError."""
        if isinstance(text, Pipeline):
            return text
        if not isinstance(text, str):
            return Pipeline(text)
        if text.strip().endswith(".toml"):
            path = Path(text.strip())
            if not path.is_file():
                raise UsageError("pipeline", f"there is no file '{path}'")
            return Pipeline(parse_toml(path.read_text(encoding="utf-8")))
        return Pipeline(parse(text))

    @staticmethod
    def from_toml(text: str) -> "Pipeline":
        return Pipeline(parse_toml(text))

    def toml(self) -> str:
        return to_toml(self.passes)

    def __str__(self) -> str:
        return ", ".join(map(str, self.passes))

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.passes == other.passes

    def __hash__(self) -> int:
        return hash(self.passes)

    def check(self, properties: Iterable[str] = (), ctx: Context | None = None) -> None:
        """Check order and needs of the whole pipeline.

        Raises UsageError naming the first pass that lacks a property (and who provides it) or a part of the context,
        or that refuses a property the graph has.
        """
        have = set(properties)
        for position, entry in enumerate(self.passes):
            for wanted in sorted(entry.requires - have):
                raise UsageError(entry.name, f"it needs '{wanted}'", self._advice(wanted, position))
            for unwanted in sorted(entry.refuses & have):
                raise UsageError(entry.name, f"the graph has '{unwanted}' by then", self._remedy(unwanted, position))
            for need in sorted(entry.needed()):
                if ctx is not None and getattr(ctx, need) is None:
                    raise UsageError(entry.name, *_MISSING[need].split("; "))
            have = (have - entry.drops) | entry.provides

    def run(self, graph: Graph, ctx: Context | None = None) -> Outcome:
        """Run all passes on a copy of `graph`; the graph itself is never changed, whatever happens.

        Raises UsageError before anything runs for a wrong order or NaN in a weight; VerifyError or the pass's own
        error otherwise; PassError where a pass declined to give what a later one needs.
        """
        ctx = ctx or Context()
        ctx = dataclasses.replace(ctx, original=ctx.original or graph)
        self.check(graph.properties, ctx)
        _refuse_nan(graph)
        work, before, steps = graph.copy(), cost(graph), []
        for entry in ctx.progress(self.passes, "passes") if self.passes else ():
            _check_granted(entry, work, steps)
            started = time.perf_counter()
            result = _run_one(entry, work, ctx)
            steps.append(Step(str(entry), result, time.perf_counter() - started, cost(work)))
        return Outcome(work, tuple(steps), before, graph)

    def _advice(self, wanted: str, position: int) -> str:
        from .base import REGISTRY

        load_all()
        later = [p.name for p in self.passes[position:] if wanted in p.provides]
        if later:
            return f"put '{later[0]}' before it"
        makers = sorted(name for name, cls in REGISTRY.items() if wanted in cls.provides)
        return f"add {' or '.join(repr(m) for m in makers)} before it" if makers else "no known pass provides it"

    def _remedy(self, unwanted: str, position: int) -> str:
        earlier = [p.name for p in self.passes[:position] if unwanted in p.provides]
        if not earlier:
            return "start from the graph that came before"
        return f"put '{self.passes[position].name}' before '{earlier[-1]}'"


def _refuse_nan(graph: Graph) -> None:
    for name, tensor in graph.weights.items():
        if has_nan(tensor):
            raise UsageError("the model", f"weight '{name}' holds NaN", "load or train it again")


def _check_granted(entry: Pass, graph: Graph, steps: list[Step]) -> None:
    """The static check trusted each pass's `provides`; here it shows whether the graph allowed them."""
    for wanted in sorted(entry.requires - graph.properties):
        blame = next((s for s in reversed(steps) if wanted in s.result.withheld), None)
        reasons = [f"{skip.where}: {skip.why}" for skip in blame.result.skipped[:1]] if blame else []
        what = f"it needs '{wanted}'" + (f", which '{blame.name}' could not give" if blame else "")
        raise PassError(entry.name, what, *reasons)


def _run_one(entry: Pass, graph: Graph, ctx: Context) -> Result:
    before, zeros = _edges(graph, entry), masks(graph)
    try:
        result = entry.run(graph, ctx)
    except PlanishError:
        raise
    except Exception as error:
        raise PassError(str(entry), f"it failed: {type(error).__name__}: {first_line(error)}") from error
    graph.properties = (graph.properties - entry.drops - result.withheld) | (entry.provides - result.withheld)
    try:
        verify(graph)
        check_zeros(graph, zeros, "sparsity")
    except PlanishError as error:
        raise type(error)(f"after {entry}, {error.where}", *_reason(error)) from error
    if (after := _edges(graph, entry)) != before:
        what = f"it changed the model's inputs or outputs from {_show(before)} to {_show(after)}"
        raise PassError(str(entry), what, "a pass keeps their shapes and dtypes")
    return result


def _reason(error: PlanishError) -> list[str]:
    return [str(error).removeprefix(f"{error.where}: ").removesuffix(".")]


def _edges(graph: Graph, entry: Pass) -> list[TensorSpec]:
    """What a pass must not change of the inputs and outputs; the names of outputs are free."""
    edges = [*graph.inputs, *(dataclasses.replace(spec, name="output") for spec in graph.outputs)]
    if entry.keeps_types():
        return edges
    return [TensorSpec(spec.name, torch.float32, spec.shape) for spec in edges]


def _show(specs: list[TensorSpec]) -> Any:
    return ", ".join(map(str, specs))
