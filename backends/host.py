"""A model for this machine: compiled by TVM into this process, saved as a library for the TVM runtime."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..ir.graph import Graph
from ..ir.shapes import TensorSpec
from .artifact import Artifact, Golden, golden_pair, tolerance
from .bundle import write_bundle
from .target import Target
from .tvm.build import CompiledModel, compile_model, save_library
from .tvm.instructions import by_symbol, multiply_accumulate
from .tvm.relax import RelaxModel, to_relax


def build_host(graph: Graph, target: Target, recipe: str) -> "HostArtifact":
    """Compile a graph, batch fixed or symbolic, for the machine that runs this Python."""
    model = to_relax(graph, target)
    return HostArtifact(graph, model, compile_model(model, target), target, recipe)


class HostArtifact(Artifact):
    """A model compiled into this process."""

    def __init__(self, graph: Graph, model: RelaxModel, compiled: CompiledModel, target: Target, recipe: str):
        super().__init__()
        self._graph, self._compiled, self._target, self._recipe = graph, compiled, target, recipe
        self._calls = model.layers
        self.others, self.integers = model.others, model.integers
        self.facts = {"code": "TVM module", "arena_bytes": compiled.arena_bytes, "weight_bytes": model.weight_bytes}

    @cached_property
    def layers(self) -> tuple[dict[str, str], ...]:
        # Reading the instructions means generating the code a second time, as text.
        symbols = sorted({layer.symbol for layer in self._calls})
        instruction = {s: multiply_accumulate(t) for s, t in by_symbol(self._compiled.assembly(), symbols).items()}
        return tuple(
            {"node": layer.node, "kernel": layer.kernel, "instruction": instruction[layer.symbol]}
            for layer in self._calls
        )

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self._compiled(*inputs)

    def save(self, path: str | os.PathLike, report: dict[str, Any], golden: Golden) -> Path:
        calls = [[layer["kernel"], layer["node"]] for layer in self.layers]
        with tempfile.TemporaryDirectory(prefix="planish-") as room:
            library = save_library(self._compiled, Path(room) / "model.so", self._target)
            fields = module_fields(self._graph, self._target, self._recipe, report, golden)
            return write_bundle(path, {**fields, "calls": calls}, {"model.so": library, **golden_pair(golden)})


def module_fields(graph: Graph, target: Target, recipe: str, report: dict[str, Any], golden: Golden) -> dict[str, Any]:
    """The manifest of a library for the TVM runtime. Symbolic extents are 1 in the golden pair."""
    symbols = {extent for spec in graph.inputs for extent in spec.shape if isinstance(extent, str)}
    return {
        "name": "model",
        "kind": "tvm",
        "entry": "main",
        "recipe": recipe,
        "target": asdict(target),
        "inputs": [_array_spec(spec) for spec in graph.inputs],
        "outputs": [_array_spec(spec) for spec in graph.outputs],
        "weight_bytes": report["after"]["bytes"],
        "golden": {**tolerance(report, golden[1]), "extents": dict.fromkeys(sorted(symbols), 1)},
        "report": report,
    }


def _array_spec(spec: TensorSpec) -> dict[str, Any]:
    dtype, affine = str(spec.dtype).removeprefix("torch."), {"scale": spec.scale, "zero_point": spec.zero_point}
    return {"name": spec.name, "dtype": dtype, "shape": list(spec.shape), **affine}
