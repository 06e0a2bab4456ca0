"""A model for this machine of which TVM takes what it can: compiled regions with PyTorch calls between them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ..ir.errors import BuildError, first_line
from ..ir.graph import Graph
from ..ir.ops import describe, location, qualified_name, writes
from .artifact import Artifact, Edges, Golden
from .cache import Cache
from .cache_key import Place
from .host import LIBRARY, HostArtifact, HostCode, build_host, find_host
from .partition import Split, calls_of, is_computation, reads_by_index, refusal, split
from .target import Target
from .tiles import TileError
from .tvm.build import compile_model
from .tvm.inference import freeze
from .tvm.relax import RelaxModel, UnsupportedCall, to_relax, unsupported


def build_local(graph: Graph, target: Target, recipe: str, cache: Cache | None = None) -> Artifact:
    """Compile a graph for the machine that runs this Python: whole where TVM takes all of it, else in regions."""
    place = Place.of(cache, graph, target, kind=LIBRARY)
    if found := find_host(place, Edges.of(graph), target, recipe):
        return found
    if not refusals(freeze(graph), target):
        try:
            return build_host(graph, target, recipe, place)
        except BuildError:
            pass  # the split below finds the call at fault and says so
    return build_hybrid(graph, target, recipe, cache)


def refusals(frozen: Graph, target: Target) -> dict[str, str]:
    """The calls of a frozen graph that must stay in PyTorch on a machine, by name, and why."""
    unknown = dict.fromkeys((node.name for node in unsupported(frozen)), "TVM has no form for it")
    spoken_against = {node.name: why for node in frozen.nodes if (why := refusal(node, half=target.has_half))}
    return {**unknown, **spoken_against}


@dataclass(frozen=True)
class RegionPlan:
    """How a graph is split; nothing is compiled.

    models  of each region: its code from the cache, or it in Relax, or what went wrong with it
    places  of each region: where its code is kept
    """

    split: Split
    models: dict[str, HostCode | RelaxModel | Exception]
    refused: dict[str, str]
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def stayed(self) -> list[fx.Node]:
        """The calls that stay in PyTorch, and would if every region built."""
        failed = {name for name, model in self.models.items() if isinstance(model, Exception)}
        calls = calls_of(self.split.module, inside=lambda name: name not in self.split.regions or name in failed)
        return [node for node in calls if is_computation(node) or node.name in self.refused]

    @property
    def eager(self) -> tuple[tuple[str, str], ...]:
        return count_calls(self.stayed)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, where it is not that TVM does not know the op."""
        outside = [node for node in self.stayed if node.graph is self.split.module.graph]
        failed = [f"{_extent_of(self.split.regions[name])}: {first_line(error)}"
                  for name, error in self.models.items() if isinstance(error, Exception)]  # fmt: skip
        return tuple(dict.fromkeys((*self.split.reasons, *failed, *_sentences(outside, self.refused))))


def plan_regions(graph: Graph, target: Target, cache: Cache | None = None, *, like_pytorch: bool = False) -> RegionPlan:
    """Split a graph into regions that TVM converts and calls that stay in PyTorch.

    like_pytorch  returned views share memory as the model's own do, and an index out of range is an error
    """
    if written := next(filter(writes, graph.nodes), None):
        # With writes the order of calls carries meaning that the graph does not show.
        why = f"{describe(written)} writes in place, and later calls may see it"
        everything = {node.name: why for node in graph.nodes if node.op == "call_function"}
        return RegionPlan(split(graph.copy().eval(), everything), {}, everything)
    frozen = freeze(graph)
    refused = refusals(frozen, target)
    if like_pytorch:
        why = "TVM does not check indices"
        refused |= {node.name: why for node in frozen.nodes if reads_by_index(node)}
    while True:
        parts = split(frozen, refused, renew_views=like_pytorch)
        places = {name: Place.of(cache, region, target, kind=LIBRARY) for name, region in parts.regions.items()}
        try:
            models = {
                name: HostCode.found(places[name]) or _emit(region, target, refused)
                for name, region in parts.regions.items()
            }
            return RegionPlan(parts, models, refused, places)
        except UnsupportedCall as culprit:
            refused[culprit.node.name] = str(culprit)


def build_hybrid(
    graph: Graph, target: Target, recipe: str, cache: Cache | None = None, *, like_pytorch: bool = False
) -> "HybridArtifact":
    """Compile the regions that TVM takes; a region that fails to build stays in PyTorch, with the reason."""
    plan = plan_regions(graph, target, cache, like_pytorch=like_pytorch)
    built: list[HostArtifact] = []
    for name, model in plan.models.items():
        if isinstance(model, Exception):
            continue
        try:
            if isinstance(model, RelaxModel):
                model = HostCode.of(model, compile_model(model, target), plan.places[name])
            built.append(HostArtifact(Edges.of(plan.split.regions[name]), model, target, recipe))
        except Exception as error:  # whatever goes wrong inside TVM, the model still runs
            plan.models[name] = error
            continue
        plan.split.module.add_submodule(name, CompiledRegion(built[-1]))
    return HybridArtifact(plan, tuple(built))


class CompiledRegion(torch.nn.Module):
    """A region's code in the place of its calls."""

    def __init__(self, artifact: HostArtifact):
        super().__init__()
        self._artifact = artifact

    def forward(self, *inputs: Any) -> Any:
        # The code reads sizes off its tensors; the calls in PyTorch that it replaces took them as inputs.
        outputs = self._artifact.run([value for value in inputs if isinstance(value, torch.Tensor)])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


class HybridArtifact(Artifact):
    """Compiled regions and PyTorch calls.

    eager    the calls that stay in PyTorch: (op, source line), calls of one op on one line counted
    reasons  why, where it is not for want of the op
    """

    def __init__(self, plan: RegionPlan, regions: tuple[HostArtifact, ...]):
        super().__init__()
        self._module = plan.split.module
        self.eager, self.reasons = plan.eager, plan.reasons
        self._regions = regions
        self.others = dict(sum((Counter(region.others) for region in regions), Counter()))
        self.integers = sum(region.integers for region in regions)
        sizes = ("arena_bytes", "weight_bytes")
        self.facts = {"code": "TVM module" if regions else "PyTorch", "regions": len(regions)}
        self.facts |= {key: sum(region.facts[key] for region in regions) for key in sizes if regions}

    @cached_property
    def layers(self) -> tuple[dict[str, str], ...]:
        return tuple(layer for region in self._regions for layer in region.layers)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(self._module(*inputs))

    def save(self, path: str | os.PathLike, report: dict[str, Any], golden: Golden) -> Path:
        """Raises BuildError naming the calls that a bundle cannot hold."""
        listed = "; ".join(f"'{op}' ({line})" for op, line in self.eager[:8]) or "parts of the model"
        what = f"{len(self.eager)} calls stay in PyTorch: {listed}"
        raise BuildError("save", what, "a bundle runs without PyTorch; capture the part of the model without them")


def count_calls(nodes: Iterable[fx.Node]) -> tuple[tuple[str, str], ...]:
    """(op, source line) of calls in order; `model.py:41 (3 calls)` where an op is called several times on a line."""
    counts = Counter((qualified_name(node.target), location(node)) for node in nodes)
    return tuple((op, line if count == 1 else f"{line} ({count} calls)") for (op, line), count in counts.items())


def _emit(region: Graph, target: Target, refused: Mapping[str, str]) -> RelaxModel | Exception:
    """The region in Relax, or what went wrong. Raises UnsupportedCall for a call that TVM rejects when it meets it."""
    try:
        return to_relax(region, target)
    except TileError:  # a tile file that does not fit: the call was wrong, not the region
        raise
    except Exception as error:
        if isinstance(error, UnsupportedCall) and error.node.name not in refused:
            raise
        return error


def _sentences(stayed: list[fx.Node], refused: dict[str, str]) -> list[str]:
    """Reasons other than that TVM does not know the op, each with the calls it holds for."""
    calls: dict[str, list[str]] = {}
    for node in stayed:
        why = refused.get(node.name, "too little work for a region of its own")
        if why != "TVM has no form for it":
            calls.setdefault(why, []).append(describe(node))
    return [
        why if why.startswith("'") else f"{', '.join(nodes[:4])}{' and more' if len(nodes) > 4 else ''}: {why}"
        for why, nodes in calls.items()
    ]


def _extent_of(region: Graph) -> str:
    computations = [node for node in region.nodes if is_computation(node)]
    return f"{describe(computations[0])} to {describe(computations[-1])}"
