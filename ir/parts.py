"""Capture in part: the regions of a model that become graphs, with the rest left in eager PyTorch."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from . import regions
from .errors import CaptureError, PlanishError, UsageError
from .graph import Graph, named_tensors
from .recording import Call, differing_dims, record


@dataclass(frozen=True)
class Eager:
    """A module that stays in eager PyTorch, and why: `Eager("roi_heads", "RoIHeads", "its inputs hold numbers")`."""

    name: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.name or 'the whole model'} ({self.kind}): {self.why}"


class Parts:
    """A model of which some modules were captured.

    graphs   dotted module name -> its graph; "" is the whole model
    eager    modules that could not be captured and stay as they are, outermost first
    """

    def __init__(self, model: torch.nn.Module, graphs: dict[str, Graph], eager: tuple[Eager, ...]):
        self._model, self.graphs, self.eager = model, graphs, eager

    def module_with(self, graphs: Mapping[str, Graph] | None = None) -> torch.nn.Module:
        """A copy of the whole model that is called like the original, with the captured modules run as graphs.

        graphs   what takes a module's place, by its name: a changed graph with the same inputs and outputs. Modules
                 that are not named run the graphs as they were captured. The copy has graphs of its own.

        Weights keep their names, methods and settings of a replaced module are still found on it, and `.train()`,
        `.to()`, `state_dict()` and `copy.deepcopy` work. The original is untouched.
        Raises UsageError for a name that is no captured module and for a graph with other inputs or outputs.
        """
        chosen = {**self.graphs, **(graphs or {})}
        for name in chosen:
            self._check(name, chosen[name])
        copied: dict[int, Any] = {}
        for name, graph in chosen.items():
            module = self._model.get_submodule(name)
            copied[id(module)] = regions.Region.replacing(module, graph.copy())
        return copy.deepcopy(self._model, copied).train(self._model.training)

    def report(self) -> str:
        """One line for each captured module and for each one that stays eager."""
        captured = [f"captured  {name or 'the whole model'}: {_summary(graph)}" for name, graph in self.graphs.items()]
        return "\n".join([*captured, *(f"eager     {entry}" for entry in self.eager)])

    __str__ = report

    def _check(self, name: str, graph: Graph) -> None:
        if name not in self.graphs:
            near = get_close_matches(name, self.graphs, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"captured are: {', '.join(self.graphs) or 'none'}"
            raise UsageError("parts", f"'{name}' is not a captured module", hint)
        for what in ("inputs", "outputs"):
            given, wanted = ([str(s).partition(" : ")[2] for s in getattr(g, what)] for g in (graph, self.graphs[name]))
            if given != wanted:
                problem = f"the graph for '{name}' has the {what} {', '.join(given)}"
                raise UsageError("parts", problem, f"expected {', '.join(wanted)}, as it was captured")


def capture_parts(
    model: torch.nn.Module, args: tuple[Any, ...] | torch.Tensor, kwargs: Mapping[str, Any] | None = None
) -> Parts:
    """Capture what can be captured of a model that cannot be captured whole, such as a detector.

    The model runs once on the example, in eval form. Then its modules are tried from the root down with the inputs that
    they got: one that can be captured becomes a graph, the children of one that cannot are tried in its place. A
    module is captured when torch.export takes it, when its inputs are tensors, and when the graph gives the same values
    as the module on every call of the run. Batch and spatial sizes stay dynamic where the module allows it.

    Raises UsageError for a call that is wrong, CaptureError where nothing can be captured.
    """
    if not isinstance(model, torch.nn.Module):
        raise UsageError("capture_parts", f"the model is a {type(model).__name__}", "expected an nn.Module")
    arguments = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    walk = _Walk(model, record(model, Call(arguments, dict(kwargs or {}))))
    walk.visit("", model)
    if not walk.graphs:
        reasons = "; ".join(map(str, walk.eager[:3]))
        raise CaptureError("capture_parts", f"no module of {type(model).__name__} can be captured ({reasons})")
    return Parts(model, walk.graphs, tuple(walk.eager))


class _Walk:
    """The walk over the module tree. Every module object is visited once."""

    def __init__(self, model: torch.nn.Module, calls: Mapping[torch.nn.Module, list[Call]]):
        self.calls = calls
        self.graphs: dict[str, Graph] = {}
        self.eager: list[Eager] = []
        self._names: dict[int, list[str]] = {}
        for name, tensor in named_tensors(model).items():
            self._names.setdefault(id(tensor), []).append(name)
        self._done: set[torch.nn.Module] = set()

    def visit(self, name: str, module: torch.nn.Module) -> None:
        if module in self._done:
            return
        self._done.add(module)
        if not any(True for _ in module.parameters()):
            return  # nothing in it could be made smaller
        try:
            self.graphs[name] = self._capture(name, module)
            self._done.update(module.modules())
        except PlanishError as refusal:
            children = list(module.named_children())
            if module in self.calls or not children:  # a container is not called, only its children are
                self.eager.append(Eager(name, type(module).__name__, str(refusal).removeprefix("capture, ")))
            for child, inner in children:
                self.visit(f"{name}.{child}" if name else child, inner)

    def _capture(self, name: str, module: torch.nn.Module) -> Graph:
        """Raises PlanishError with the reason why this module cannot stand as one graph."""
        if module not in self.calls:
            raise CaptureError("capture", "it was not called in the example's run")
        self._check_ties(name, module)
        calls = self.calls[module]
        regions.check_inputs_are_tensors(calls)
        graph = regions.capture_region(module, calls, differing_dims(calls))
        regions.check_same_values(module, graph, calls)
        return graph

    def _check_ties(self, name: str, module: torch.nn.Module) -> None:
        """A weight that is also used outside would be cut here and stay whole there."""
        inside = f"{name}." if name else ""
        for tensor in module.parameters():
            outside = [other for other in self._names[id(tensor)] if not other.startswith(inside)]
            if outside:
                raise CaptureError("capture", f"it shares the weight '{outside[0]}' with the rest of the model")


def _summary(graph: Graph) -> str:
    inputs = ", ".join(str(spec).partition(" : ")[2] for spec in graph.inputs)
    return f"{sum(n.op == 'call_function' for n in graph.nodes)} ops, {inputs}"
