"""compile(): capture -> pipeline -> build, and the result that is called like the model."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .backends.build import Artifact, build, find
from .backends.cache import Cache
from .backends.target import Target
from .backends.tile_file import check_tuning, tiles_for
from .ir.capture import Source, capture
from .ir.errors import UsageError
from .ir.graph import Graph
from .ir.shapes import check_inputs
from .latency import layer_latency
from .outcomes import Kept, Outcomes
from .passes.base import Context, Fuel, Pass, no_progress
from .passes.pipeline import DEFAULT_RECIPE, Pipeline
from .profiling import LayerTime, Profile
from .report import Report
from .sources import read_graph
from .thinned import Thinned


def compile(
    model: Source,
    args: Any = None,
    *,
    recipe: str | Pipeline | Iterable[Pass] = DEFAULT_RECIPE,
    target: str | Target = "local",
    data: Iterable | None = None,
    batch: int | str | None = None,
    seed: int = 0,
    fuel: int | None = None,
    evaluate: Callable[[Graph], float] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] = torch.nn.functional.cross_entropy,
    latency: Callable[[Graph], float] | None = None,
    progress: Callable[[Iterable, str], Iterable] = no_progress,
    cache: bool = True,
    tune: int = 0,
    tiles: str | os.PathLike | None = None,
) -> "CompiledModel":
    """Make a model thin and compile it for a machine.

    model     nn.Module, ExportedProgram, Graph, or a path to a .pt2 file, an .onnx file or a saved graph
    args      example inputs, needed for an nn.Module: one tensor or a tuple
    recipe    a pipeline: one line of text, a path to a .toml file, or passes
    target    a row of `planish targets`
    data      batches for calibration, training and scores, readable more than once; (inputs, labels) where a pass
              learns from labels
    batch     the batch size to compile for; "dynamic" for any (local target); by default that of `args`, or 1
    seed      for every random choice; the same inputs and seed give the same bytes
    fuel      stop rewriting after so many rewrites, for finding a wrong one by bisection
    evaluate  a function Graph -> float, higher is better, for passes that look at accuracy
    loss      a function (outputs, labels) -> scalar tensor, for passes that need gradients
    latency   a function Graph -> milliseconds, for passes that look at time (`planish.layer_latency`); by default what
              this machine takes, where the code is for it
    cache     look for what was made before on disk, and keep it there
    tune      time that many register tiles for each layer on this machine, and keep the fastest in the tile file
    tiles     the tile file; by default that of this machine's core, where the code is for it

    Raises UsageError for a wrong argument before any work starts, BuildError where the target cannot take the model.
    """
    row = _with_tiles(Target.get(target), tiles, tune)
    pipeline = Pipeline.parse(recipe)
    kept = check_tuning(tune, row, batch, tiles) if tune else None
    latency = latency or (layer_latency(row) if row.name == "local" else None)
    context = Context(data, row, seed, Fuel(fuel), evaluate=evaluate, loss=loss, latency=latency, progress=progress)
    clock, store, size = Stopwatch(progress), Cache.default() if cache else None, _batch_size(batch, args, row)
    outcomes = Outcomes(None if tune else store, pipeline, context, size)
    if found := clock.time("lookup", lambda: outcomes.find(model, args)) if outcomes.is_open else None:
        return _found(found, row, str(pipeline), store, clock)
    opened = clock.time("capture", lambda: _opened(model), shown=False)
    pipeline.check(_known_properties(opened), context)
    captured = clock.time("capture", lambda: capture(opened, args))
    if found := clock.time("lookup", lambda: outcomes.find(captured)) if outcomes.is_open else None:
        return _found(found, row, str(pipeline), store, clock)
    outcome = clock.time("passes", lambda: pipeline.run(captured, context), shown=False)  # it shows each pass
    thinned = Thinned.of(outcome.graph, size)
    if kept is not None:
        row = clock.time("tune", lambda: _tuned(thinned.fixed, row, tune, kept, progress), shown=False)
    artifact = clock.time("build", lambda: build(thinned.fixed, row, str(pipeline), store))
    report = Report.of(row.name, str(pipeline), outcome, artifact, clock.seconds)
    outcomes.keep(thinned, report, artifact)
    return CompiledModel(thinned, row, artifact, report)


class CompiledModel:
    """A compiled model: called like the original one.

    graph   the thinned model, trainable PyTorch
    report  what was done and what came of it; print it, or take `.as_dict()`
    """

    def __init__(self, thinned: Thinned, target: Target, artifact: Artifact, report: Report):
        self.target, self.report = target, report
        self._thinned, self._artifact = thinned, artifact

    @property
    def graph(self) -> Graph:
        return self._thinned.graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on this machine (a board's code on the emulator), with the outputs in the model's own structure.

        Raises UsageError for an input of a wrong shape or dtype.
        """
        outputs = self._artifact.run(self._leaves(args, kwargs))
        return pytree.tree_unflatten(outputs, self._thinned.out_spec)

    def _leaves(self, args: Any, kwargs: Any) -> tuple[torch.Tensor, ...]:
        leaves = tuple(v for v in pytree.tree_leaves((args, kwargs)) if v is not None)
        check_inputs("the compiled model", list(self._thinned.edges.inputs), leaves)
        return leaves

    def profile(self, *args: Any, runs: int = 30) -> Profile:
        """Time every kernel call on one core of this machine, beside what the core can do at most.

        args: the model's inputs, drawn at random (seed 0) without them; runs: of which each kernel's least time counts.

        Raises UsageError for a model that was compiled for another machine, or of which a part stays in PyTorch, for
        inputs that do not fit, and for less than one run.
        """
        if self.target.name != "local" or self.report.eager:
            what = "a part of it stays in PyTorch" if self.report.eager else f"it is code for {self.target.name}"
            raise UsageError("profile", what, "a model that was compiled as a whole for this machine")
        if runs < 1:
            raise UsageError("profile", f"runs={runs}", "at least 1")
        from .backends.tvm.profile import kernel_times

        inputs = self._leaves(args, {}) if args else self._thinned.fixed.example_inputs(seed=0)
        rows, peaks = kernel_times(self._thinned.fixed, self.target, inputs, runs)
        return Profile(tuple(LayerTime(*row) for row in rows), peaks)

    def save(self, path: str | os.PathLike) -> Path:
        """Write a bundle: one file with code, weights, manifest, hashes and a golden input and output.

        The same model, arguments and seed give the same bytes.
        """
        return self._artifact.save(path, self.report.untimed().as_dict(), self._thinned.golden())


def reports() -> list[Report]:
    """What `torch.compile(model, backend="planish")` made in this process: a report per region, the latest last.

    Only the latest few hundred are kept.
    """
    from .backends.torch_compile.records import compilations  # it brings TVM along

    return [
        Report.of(c.target, c.recipe, c.outcome, c.artifact, c.seconds, eager=c.eager, reasons=c.reasons)
        for c in compilations()
    ]


class Stopwatch:
    """Seconds by stage, for the report; each stage shows itself as progress."""

    def __init__(self, progress: Callable[[Iterable, str], Iterable]) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    def time(self, label: str, work: Callable[[], Any], *, shown: bool = True) -> Any:
        started = time.perf_counter()
        (result,) = [work() for _ in (self._progress((label,), label) if shown else (label,))]
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - started
        return result


def _with_tiles(row: Target, tiles: str | os.PathLike | None, tune: int) -> Target:
    """A target with the register tiles that were measured for it."""
    return replace(row, tiles=tiles_for(row, tiles, may_be_new=bool(tune)))


def _tuned(graph: Graph, row: Target, count: int, path: Path, progress: Callable[[Iterable, str], Iterable]) -> Target:
    """A target with the tiles that measuring a graph's layers finds."""
    from .backends.tune import tune  # it brings TVM along

    return replace(row, tiles=tune(graph, row, count, path, progress))


def _opened(model: Source) -> Source:
    """What a file holds: a saved graph may have properties. Any other model as it is."""
    return read_graph(model) if isinstance(model, (str, os.PathLike)) else model


def _known_properties(model: Source) -> set[str]:
    return model.properties if isinstance(model, Graph) else set()


def _found(kept: Kept, row: Target, recipe: str, store: Cache | None, clock: Stopwatch) -> CompiledModel:
    """The model that an earlier compilation made. Where its code is gone from the cache, it is built again."""

    def code() -> Artifact:
        edges = kept.thinned.edges
        there = find(kept.code, edges, row, recipe, store) if kept.code is not None and store is not None else None
        return there or build(kept.thinned.fixed, row, recipe, store)

    artifact = clock.time("build", code)
    return CompiledModel(kept.thinned, row, artifact, replace(kept.report, seconds=clock.seconds))


def _batch_size(batch: int | str | None, args: Any, target: Target) -> int | None:
    """The batch that code is made for; None for any. Raises UsageError for one that it cannot be made for."""
    if batch == "dynamic":
        if target.code != "tvm" or target.kind != "cpu":
            raise UsageError("batch", f"'dynamic' was given for {target.name}", "code for a board has one batch size")
        return None
    if isinstance(batch, str):
        raise UsageError("batch", f"'{batch}' was given", "expected a number or 'dynamic'")
    if batch is None:
        leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        return int(leaves[0].shape[0]) if leaves else 1
    return batch
