"""torch.compile(model, backend="planish"): regions that we can build go to TVM, the rest stays in PyTorch."""

import difflib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx

from ...ir.errors import UsageError
from ...passes.base import Context
from ...passes.pipeline import DEFAULT_RECIPE, Pipeline
from ..cache import Cache
from ..target import Target
from ..tile_file import tiles_for
from .builder import Builder
from .graph import Slots
from .program import Program

# A model whose weights change at every call must not be compiled at every call: a region is built again once its
# weights have stayed the same for this many calls, and runs in PyTorch until then.
SETTLED_CALLS = 3
# Blocks of one class share dynamo's graph; each set of weights, and each set of shapes, is a program of its own.
MAX_PROGRAMS = 64


@dataclass(frozen=True)
class Options:
    """torch.compile's `options`.

    recipe   a pipeline: text, a path to a .toml file, or passes
    target   only "local": the code runs in this process
    dry_run  print what would go to TVM and what would stay, build nothing, run in PyTorch
    data     batches for recipes that calibrate
    cache    look for code on disk, and keep it there
    """

    recipe: str | Pipeline | Iterable = DEFAULT_RECIPE
    target: str | Target = "local"
    dry_run: bool = False
    data: Iterable | None = None
    cache: bool = True

    @staticmethod
    def of(keywords: Mapping[str, Any]) -> "Options":
        """Check what torch.compile passes on. Raises UsageError with the nearest name where one is close."""
        if "mode" in keywords:
            what = f"mode={keywords['mode']!r} is a mode of Inductor"
            raise UsageError("torch.compile", what, "drop it, or pass options={'recipe': ...}")
        given = dict(keywords.get("options") or {})
        known = [field.name for field in fields(Options)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known options: {', '.join(known)}"
                raise UsageError("torch.compile", f"unknown option '{name}'", hint)
        return Options(**given)

    def checked(self) -> tuple[Pipeline, Context]:
        """The pipeline and its context. Raises UsageError for a wrong recipe or target, or missing data."""
        row, pipeline = Target.get(self.target), Pipeline.parse(self.recipe)
        if (row.kind, row.code) != ("cpu", "tvm"):
            advice = "for another machine use planish.compile(model, args, target=...).save(path)"
            raise UsageError("torch.compile", f"target '{row.name}' was given", "expected 'local'", advice)
        context = Context(data=self.data, target=replace(row, tiles=tiles_for(row)))
        pipeline.check((), context)
        return pipeline, context


def planish_backend(module: fx.GraphModule, example_inputs: list[Any], **keywords: Any) -> Callable[..., Any]:
    """The backend that torch.compile calls with each graph that dynamo makes; registered by entry point.

    Parameters and buffers are frozen into the code; each call looks whether they still are what was compiled.
    A region is built at its first call. Where it cannot be, or a gradient may be needed, it runs in PyTorch, and
    `planish.reports()` says why. The code lives in this process only.

    The function that is returned raises UsageError for wrong options: what a backend raises itself, dynamo wraps.
    """
    return DynamoRegion(module, keywords)


class DynamoRegion:
    """One graph of dynamo's, and the programs that were built of it."""

    def __init__(self, module: fx.GraphModule, keywords: Mapping[str, Any]):
        self._module, self._keywords = module, dict(keywords)
        self._slots = Slots.of(module)
        self._programs: list[Program] = []
        self._said: set[str] = set()
        self._lock = threading.RLock()

    def __call__(self, *args: Any) -> Any:
        builder = self._builder
        outputs = None
        if why := _obstacle(args):
            self._say(why)
        elif program := self._program(args, builder):
            outputs = program.run([args[i] for i in self._slots.tensors])
        return self._module(*args) if outputs is None else outputs

    @cached_property
    def _builder(self) -> Builder:
        """Raises UsageError for wrong options."""
        options = Options.of(self._keywords)
        cache = Cache.default() if options.cache else None
        return Builder(self._module, self._slots, *options.checked(), cache, dry_run=options.dry_run)

    def _program(self, args: tuple[Any, ...], builder: Builder) -> Program | None:
        """The code for these arguments, built where there is none; None where this call runs in PyTorch."""
        weights = [args[i] for i in self._slots.weights]
        with self._lock:
            found = self._find(weights, args)
            if found is not None and not found.stamp.is_current(weights):
                if found.calls_since_change(weights) < SETTLED_CALLS:
                    return None
                self._programs.remove(found)
                found = None
            if found is None:
                self._programs = [program for program in self._programs if program.stamp.is_alive()]
                if len(self._programs) >= MAX_PROGRAMS:
                    self._say(f"{MAX_PROGRAMS} sets of weights or shapes of this graph are compiled already")
                    return None
                found = builder.build(args, dynamic=self._slots.is_dynamic)
                self._programs.append(found)
            return found

    def _find(self, weights: list[torch.Tensor], args: tuple[Any, ...]) -> Program | None:
        for program in self._programs:
            if program.stamp.is_of(weights) and (not self._slots.is_dynamic or self._fits(program, args)):
                return program
        return None

    def _fits(self, program: Program, args: tuple[Any, ...]) -> bool:
        numbers = self._slots.number_values(args)
        return program.numbers == numbers and program.fits([args[i] for i in self._slots.tensors])

    def _say(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            self._builder.stays(why)


def _obstacle(args: tuple[Any, ...]) -> str | None:
    """Why this call runs in PyTorch."""
    if torch.is_grad_enabled() and any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args):
        return "a gradient may be needed; call the model under torch.no_grad() or torch.inference_mode()"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on, and the code computes in float32"
    return None
