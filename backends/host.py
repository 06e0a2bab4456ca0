"""A model for this machine: compiled by TVM into this process, saved as a library for the TVM runtime."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..ir.graph import Graph
from ..ir.shapes import TensorSpec
from .artifact import Artifact, Edges, Golden, golden_pair, tolerance
from .bundle import write_bundle
from .cache import Entry
from .cache_key import Place
from .target import Target
from .tvm.build import CompiledModel, compile_model, load_compiled, save_library
from .tvm.instructions import by_symbol, multiply_accumulate
from .tvm.relax import RelaxModel, to_relax

# The library's name, in bundles and in the cache.
LIBRARY = "model.so"


@dataclass(frozen=True)
class HostCode:
    """What is compiled for one graph: the code, a row per kernel call, and what the report says of it."""

    compiled: CompiledModel
    layers: Callable[[], tuple[dict[str, str], ...]]
    others: dict[str, int]
    integers: int
    weight_bytes: int

    @staticmethod
    def of(model: RelaxModel, compiled: CompiledModel, place: Place) -> "HostCode":
        """Code that was just compiled, which is kept in its place in the cache."""
        code = HostCode(
            compiled, cache(lambda: _layers(model, compiled)), model.others, model.integers, model.weight_bytes
        )
        if place.is_open and compiled.library is not None:
            facts = {"layers": code.layers(), "others": code.others, "integers": code.integers,
                     "weight_bytes": code.weight_bytes, "arena_bytes": compiled.arena_bytes}  # fmt: skip
            place.put(Entry(facts, {LIBRARY: compiled.library.read_bytes()}))
        return code

    @staticmethod
    def found(place: Place) -> "HostCode | None":
        """Code that the cache holds, loaded; None where it holds none that can be loaded."""
        entry = place.get()
        if entry is None:
            return None
        facts = entry.facts
        try:
            layers = tuple(facts["layers"])
            compiled = load_compiled(entry.members[LIBRARY], facts["arena_bytes"])
            return HostCode(compiled, lambda: layers, facts["others"], facts["integers"], facts["weight_bytes"])
        except Exception:  # whatever TVM raises for a library that it cannot load
            place.drop()
            return None


def build_host(graph: Graph, target: Target, recipe: str, place: Place) -> "HostArtifact":
    """Compile a graph, batch fixed or symbolic, for the machine that runs this Python."""
    model = to_relax(graph, target)
    code = HostCode.of(model, compile_model(model, target), place)
    return HostArtifact(Edges.of(graph), code, target, recipe, place.key)


def find_host(place: Place, edges: Edges, target: Target, recipe: str) -> "HostArtifact | None":
    """What `build_host` made before, out of its place in the cache."""
    code = HostCode.found(place)
    return HostArtifact(edges, code, target, recipe, place.key) if code else None


class HostArtifact(Artifact):
    """A model compiled into this process."""

    def __init__(self, edges: Edges, code: HostCode, target: Target, recipe: str, key: str | None = None):
        super().__init__()
        self._edges, self._code, self._target, self._recipe, self.key = edges, code, target, recipe, key
        self._compiled = code.compiled
        self.others, self.integers = code.others, code.integers
        self.facts = {
            "code": "TVM module",
            "arena_bytes": code.compiled.arena_bytes,
            "weight_bytes": code.weight_bytes,
        }

    @property
    def layers(self) -> tuple[dict[str, str], ...]:
        return self._code.layers()

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self._compiled(*inputs)

    def save(self, path: str | os.PathLike, report: dict[str, Any], golden: Golden) -> Path:
        calls = [[layer["kernel"], layer["node"]] for layer in self.layers]
        with tempfile.TemporaryDirectory(prefix="planish-") as room:
            library = save_library(self._compiled, Path(room) / LIBRARY, self._target)
            fields = module_fields(self._edges, self._target, self._recipe, report, golden)
            return write_bundle(path, {**fields, "calls": calls}, {LIBRARY: library, **golden_pair(golden)})


def _layers(model: RelaxModel, compiled: CompiledModel) -> tuple[dict[str, str], ...]:
    symbols = sorted({layer.symbol for layer in model.layers})
    instruction = {s: multiply_accumulate(t) for s, t in by_symbol(compiled.assembly(), symbols).items()}
    return tuple(
        {"node": layer.node, "kernel": layer.kernel, "instruction": instruction[layer.symbol]} for layer in model.layers
    )


def module_fields(edges: Edges, target: Target, recipe: str, report: dict[str, Any], golden: Golden) -> dict[str, Any]:
    """The manifest of a library for the TVM runtime. Symbolic extents are 1 in the golden pair."""
    symbols = {extent for spec in edges.inputs for extent in spec.shape if isinstance(extent, str)}
    return {
        "name": "model",
        "kind": "tvm",
        "entry": "main",
        "recipe": recipe,
        "target": target.facts(),
        "inputs": [_array_spec(spec) for spec in edges.inputs],
        "outputs": [_array_spec(spec) for spec in edges.outputs],
        "weight_bytes": report["after"]["bytes"],
        "golden": {**tolerance(report, golden[1]), "extents": dict.fromkeys(sorted(symbols), 1)},
        "report": report,
    }


def _array_spec(spec: TensorSpec) -> dict[str, Any]:
    dtype, affine = str(spec.dtype).removeprefix("torch."), {"scale": spec.scale, "zero_point": spec.zero_point}
    return {"name": spec.name, "dtype": dtype, "shape": list(spec.shape), **affine}
