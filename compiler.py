"""compile(): capture -> pipeline -> build, and the result that is called like the model."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .backends.build import Artifact, build
from .backends.cache import Cache
from .backends.target import Target
from .backends.tile_file import check_tuning, tiles_for
from .ir.capture import Source, capture
from .ir.errors import UsageError
from .ir.graph import Graph
from .ir.shapes import check_inputs
from .ir.specialize import fix_batch
from .latency import layer_latency
from .passes.base import Context, Fuel, Pass, no_progress
from .passes.pipeline import DEFAULT_RECIPE, Pipeline
from .profiling import LayerTime, Profile
from .report import Report
from .sources import read_graph


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
    cache     look for built code on disk, and keep it there
    tune      time that many register tiles for each layer on this machine, and keep the fastest in the tile file
    tiles     the tile file; by default that of this machine's core, where the code is for it

    Raises UsageError for a wrong argument before any work starts, BuildError where the target cannot take the model.
    """
    row = Target.get(target)
    row = replace(row, tiles=tiles_for(row, tiles, may_be_new=bool(tune)))
    pipeline = Pipeline.parse(recipe)
    kept = check_tuning(tune, row, batch, tiles) if tune else None
    latency = latency or (layer_latency(row) if row.name == "local" else None)
    context = Context(data, row, seed, Fuel(fuel), evaluate=evaluate, loss=loss, latency=latency, progress=progress)
    clock = Stopwatch(progress)
    if isinstance(model, (str, os.PathLike)):
        path = model
        model = clock.time("capture", lambda: read_graph(path))  # a saved graph may have properties
    pipeline.check(_known_properties(model), context)
    captured = clock.time("capture", lambda: capture(model, args))
    outcome = clock.time("passes", lambda: pipeline.run(captured, context), shown=False)  # it shows each pass
    graph = outcome.graph
    fixed = _for_batch(graph, batch, args, row)
    if kept is not None:
        from .backends.tune import tune as tuned  # it brings TVM along

        row = replace(row, tiles=clock.time("tune", lambda: tuned(fixed, row, tune, kept, progress), shown=False))
    artifact = clock.time("build", lambda: build(fixed, row, str(pipeline), Cache.default() if cache else None))
    report = Report.of(row.name, str(pipeline), outcome, artifact, clock.seconds)
    return CompiledModel(graph, fixed, row, artifact, report)


class CompiledModel:
    """A compiled model: called like the original one.

    graph   the thinned model, trainable PyTorch
    report  what was done and what came of it; print it, or take `.as_dict()`
    """

    def __init__(self, graph: Graph, fixed: Graph, target: Target, artifact: Artifact, report: Report):
        self.graph, self.target, self.report = graph, target, report
        self._fixed, self._artifact = fixed, artifact
        self._inputs = fixed.inputs
        self._out_spec = fixed.module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on this machine (a board's code on the emulator), with the outputs in the model's own structure.

        Raises UsageError for an input of a wrong shape or dtype.
        """
        outputs = self._artifact.run(self._leaves(args, kwargs))
        return pytree.tree_unflatten(outputs, self._out_spec)

    def _leaves(self, args: Any, kwargs: Any) -> tuple[torch.Tensor, ...]:
        leaves = tuple(v for v in pytree.tree_leaves((args, kwargs)) if v is not None)
        check_inputs("the compiled model", self._inputs, leaves)
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

        inputs = self._leaves(args, {}) if args else self._fixed.example_inputs(seed=0)
        rows, peaks = kernel_times(self._fixed, self.target, inputs, runs)
        return Profile(tuple(LayerTime(*row) for row in rows), peaks)

    def save(self, path: str | os.PathLike) -> Path:
        """Write a bundle: one file with code, weights, manifest, hashes and a golden input and output.

        The same model, arguments and seed give the same bytes.
        """
        return self._artifact.save(path, self.report.untimed().as_dict(), self._golden())

    def _golden(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """A random input, and the answer that PyTorch gives for the thinned graph."""
        inputs = self._fixed.example_inputs(seed=0)
        with torch.no_grad():
            outputs = pytree.tree_leaves(self._fixed.module(*inputs))
        return list(inputs), outputs


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


def _known_properties(model: Source) -> set[str]:
    return model.properties if isinstance(model, Graph) else set()


def _for_batch(graph: Graph, batch: int | str | None, args: Any, target: Target) -> Graph:
    """The graph with the batch that code is made for."""
    if batch == "dynamic":
        if target.code != "tvm" or target.kind != "cpu":
            raise UsageError("batch", f"'dynamic' was given for {target.name}", "code for a board has one batch size")
        return graph
    if isinstance(batch, str):
        raise UsageError("batch", f"'{batch}' was given", "expected a number or 'dynamic'")
    if batch is None:
        leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        batch = int(leaves[0].shape[0]) if leaves else 1
    return fix_batch(graph, batch)
