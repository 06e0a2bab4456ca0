"""Pass, Result, Skip and Context: all that a pass author meets."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir import rewrite, shapes
from ..ir.errors import UsageError
from ..ir.graph import Graph, GraphModule
from ..ir.ops import describe

REGISTRY: dict[str, type["Pass"]] = {}

NAME = re.compile(r"[A-Za-z][\w-]*")
NEEDS = frozenset({"data", "target", "evaluate", "latency"})


@dataclass(frozen=True)
class Skip:
    """A place where a pass declined, and why: `Skip("'aten.conv2d.default' (model.py:8)", "its weight is shared")`."""

    where: str
    why: str

    @staticmethod
    def at(node: fx.Node, why: str) -> "Skip":
        return Skip(describe(node), why)


@dataclass(frozen=True)
class Result:
    """What a pass did: how many places it changed, where it declined, and facts for the report (JSON-able).

    withheld   those properties of the pass's `provides` that do not hold on this graph, because it declined somewhere
    survivors  weight -> what is left of it (`.take(tensor)` thins a tensor of its former shape), for passes that thin
    """

    changed: int
    skipped: tuple[Skip, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    withheld: frozenset[str] = frozenset()
    survivors: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


class Fuel:
    """A count of rewrites still allowed. Every rewrite asks `take()`, so a wrong result is found by bisection."""

    def __init__(self, amount: int | None = None):
        self.left = amount
        self.used = 0

    def take(self) -> bool:
        if self.left is not None and self.used >= self.left:
            return False
        self.used += 1
        return True


def no_progress(items: Iterable, label: str) -> Iterable:
    """The progress callable that shows nothing."""
    return items


@dataclass
class Context:
    """What a pass may use and a pipeline's text cannot hold.

    data      batches for calibration: an iterable that can be read again; a batch is a tensor, a tuple of input
              tensors, or (inputs, labels)
    target    the machine that the model is for (backends.target.Target), None when unknown
    evaluate  a function Graph -> float, higher is better
    loss      a function (outputs, labels) -> scalar tensor, for passes that need gradients; cross-entropy by default
    original  what distillation learns from; by default the graph that the pipeline was given, before its first pass
    latency   a function Graph -> milliseconds of one run on the target; `planish.layer_latency` makes one
    progress  wraps an iterable that takes a while: progress(items, label) -> items
    """

    data: Iterable | None = None
    target: Any = None
    seed: int = 0
    fuel: Fuel = field(default_factory=Fuel)
    evaluate: Callable[[Graph], float] | None = None
    loss: Callable[[Any, Any], torch.Tensor] = torch.nn.functional.cross_entropy
    original: Graph | None = None
    latency: Callable[[Graph], float] | None = None
    progress: Callable[[Iterable, str], Iterable] = no_progress

    def batches(self, graph: Graph, where: str) -> Iterator[tuple[torch.Tensor, ...]]:
        """The model's inputs of every batch, checked.

        Raises UsageError for no data, an empty loader, a wrong shape, NaN or infinity.
        """
        for inputs, _ in self._read(graph, where):
            yield inputs

    def labelled_batches(self, graph: Graph, where: str) -> Iterator[tuple[tuple[torch.Tensor, ...], Any]]:
        """(inputs, labels) of every batch, the inputs checked as in `batches`.

        Raises UsageError also for a batch without labels.
        """
        for count, (inputs, batch) in enumerate(self._read(graph, where), start=1):
            if isinstance(batch, torch.Tensor) or len(batch) != len(inputs) + 1:
                what = f"batch {count} has no labels"
                raise UsageError(where, what, "expected (inputs, labels)", "pass data=loader of such batches")
            yield inputs, tuple(batch)[-1]

    def _read(self, graph: Graph, where: str) -> Iterator[tuple[tuple[torch.Tensor, ...], Any]]:
        """(the checked inputs, the whole batch) for every batch."""
        if self.data is None:
            raise UsageError(where, "no data was given", "pass data=loader")
        specs, count = graph.inputs, 0
        for count, batch in enumerate(_as_batches(self.data), start=1):
            inputs = model_inputs(batch, len(specs))
            shapes.check_inputs(f"{where}, batch {count}", specs, inputs)
            for spec, tensor in zip(specs, inputs, strict=True):
                if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
                    raise UsageError(f"{where}, batch {count}", f"input '{spec.name}' holds NaN or infinity")
            yield inputs, batch
        if not count:
            raise UsageError(where, "the loader is empty", "give at least one batch")


def model_inputs(batch: Any, wanted: int) -> tuple[torch.Tensor, ...]:
    """The model's own inputs out of a batch: labels after them are dropped."""
    if isinstance(batch, torch.Tensor):
        return (batch,)
    inputs = tuple(batch)
    return inputs[:wanted] if len(inputs) in (wanted, wanted + 1) else inputs


def _as_batches(data: Any) -> Iterable:
    """One tensor is one batch."""
    return [data] if isinstance(data, torch.Tensor) else data


@dataclass(frozen=True)
class Pass:
    """A graph transformation. A frozen dataclass: its fields are its options; a subclass with a `name` is registered.

    name      how pipelines call it: `fold-batch-norm`
    requires  properties that the graph must have before; provides: those it has after; drops: those it loses
    refuses   properties that the graph must not have: what changes channels refuses {"fake-quant"}
    needs     what the Context must hold: {"data"}, {"target"}, {"evaluate"}, {"latency"}
    """

    name: ClassVar[str] = ""
    requires: ClassVar[frozenset[str]] = frozenset()
    refuses: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__ and cls.name:
            if not NAME.fullmatch(cls.name):
                raise UsageError("passes", f"{cls.__name__} is named {cls.name!r}", "expected letters, digits, dashes")
            if unknown := sorted(set(cls.needs) - NEEDS):
                raise UsageError(cls.name, f"it needs '{unknown[0]}'", f"a pass can need {', '.join(sorted(NEEDS))}")
            known = REGISTRY.get(cls.name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UsageError("passes", f"two passes are named '{cls.name}'", f"{known.__module__} has it already")
            REGISTRY[cls.name] = cls

    def needed(self) -> frozenset[str]:
        """What the Context must hold for these options: `needs`, and more where an option asks for it."""
        return self.needs

    def keeps_types(self) -> bool:
        """Whether the model's inputs and outputs keep their dtypes, for these options. Their shapes always stay."""
        return True

    def is_repeatable(self) -> bool:
        """Whether graph, options, target, seed and the batches of data decide the result, and it is all that comes of
        the pass, for these options. False for what writes files, or takes something from files, clocks or devices."""
        return True

    def run(self, graph: Graph, ctx: Context) -> Result:
        """Change `graph` in place and say what was done. The caller owns the graph; pipelines pass a copy."""
        raise UsageError(self.name, "the pass has no 'run' method", "define run(self, graph, ctx) -> Result")

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, by field name."""
        differing = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            factory = entry.default_factory
            default = factory() if factory is not dataclasses.MISSING else entry.default
            if value != default:
                differing[entry.name] = value
        return differing

    def __str__(self) -> str:
        from .pipeline_text import pass_text

        return pass_text(self)


@dataclass(frozen=True)
class FunctionPass(Pass):
    """Any function GraphModule -> GraphModule (or None when it works in place) as a pass."""

    function: Callable[[fx.GraphModule], fx.GraphModule | None] = lambda module: None
    label: str = "function"

    def run(self, graph: Graph, ctx: Context) -> Result:
        if not ctx.fuel.take():
            return Result(0)
        before, call_form = graph.text(), graph.module.graph._codegen
        inputs = {node.name: node.meta["val"] for node in graph.module.graph.find_nodes(op="placeholder")}
        module = self.function(graph.module)
        if module is not None and module is not graph.module:
            graph.module = GraphModule(module, module.graph)
        graph.module.graph.set_codegen(call_form)  # retracing flattens nested inputs and outputs
        for node in graph.module.graph.find_nodes(op="placeholder"):  # and forgets their types
            node.meta.setdefault("val", inputs.get(node.name))
        rewrite.finish(graph)
        return Result(int(graph.text() != before))

    def __str__(self) -> str:
        return f"<{self.label}>"


def wrap(function: Callable[[fx.GraphModule], fx.GraphModule | None]) -> FunctionPass:
    """Let a function on fx.GraphModules sit in a pipeline beside passes."""
    return FunctionPass(function, getattr(function, "__name__", "function"))
