"""A model for a board: a C program in a bundle, run on the board, here or on the emulator."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..ir.graph import Graph
from .artifact import Artifact, Golden, golden_pair, tolerance
from .bundle import Bundle, write_bundle
from .c import CProgram, emit, link_library, link_runner
from .cache import Cache, Entry
from .cache_key import Place
from .device import Device
from .linker import linkers_of
from .session import Session
from .target import Target
from .tvm.build import lower
from .tvm.instructions import multiply_accumulate
from .tvm.relax import RelaxModel, to_relax


@dataclass(frozen=True)
class BoardCode:
    """A C program, its runner linked, in a temporary folder; a row per kernel call, and what the report says of it."""

    program: CProgram
    room: tempfile.TemporaryDirectory
    layers: tuple[dict[str, str], ...]
    others: dict[str, int]
    integers: int

    @staticmethod
    def found(place: Place, target: Target) -> "BoardCode | None":
        """The program that the cache holds, unpacked; None where it holds none."""
        entry = place.get()
        if entry is None:
            return None
        room = tempfile.TemporaryDirectory(prefix="planish-")
        directory = Path(room.name) / "program"
        directory.mkdir()
        for name, content in entry.members.items():
            (directory / name).write_bytes(content)
        (directory / "runner").chmod(0o755)
        facts = entry.facts
        program = CProgram.of_facts(facts["program"], directory, target)
        return BoardCode(program, room, tuple(facts["layers"]), facts["others"], facts["integers"])

    def keep(self, place: Place) -> None:
        """Put it into the cache."""
        if place.is_open:
            facts = {"program": self.program.facts(), "layers": self.layers, "others": self.others,
                     "integers": self.integers}  # fmt: skip
            files = sorted(path for path in self.program.directory.iterdir() if path.is_file())
            place.put(Entry(facts, {path.name: path.read_bytes() for path in files}))


def build_board(graph: Graph, target: Target, recipe: str, cache: Cache | None = None) -> "BoardArtifact":
    """Compile a graph of fixed shape to a C program and its runner.

    Raises BuildError where an op has no form in C, or no linker for the target is installed.
    """
    place = Place.of(cache, graph, target, kind="program", linkers=linkers_of(target.triple))
    if found := find_board(place, target, recipe):
        return found
    code = _compiled(graph, target)
    code.keep(place)
    return BoardArtifact(code, recipe, place.key)


def find_board(place: Place, target: Target, recipe: str) -> "BoardArtifact | None":
    """What `build_board` made before, out of its place in the cache."""
    code = BoardCode.found(place, target)
    return BoardArtifact(code, recipe, place.key) if code else None


def _compiled(graph: Graph, target: Target) -> BoardCode:
    model = to_relax(graph, target)
    room = tempfile.TemporaryDirectory(prefix="planish-")
    program = emit(lower(model, target), target, Path(room.name) / "program", layers=model.layers_by_symbol(),
                   edges=(graph.inputs, graph.outputs))  # fmt: skip
    link_runner(program)
    if target.runs_here():
        link_library(program)
    return BoardCode(program, room, _layers(program, model), model.others, model.integers)


def _layers(program: CProgram, model: RelaxModel) -> tuple[dict[str, str], ...]:
    kernels = {layer.symbol: layer.kernel for layer in model.layers}
    instruction = {symbol: multiply_accumulate(text) for symbol, text in program.assembly().items()}
    return tuple(
        {
            "node": call.layer,
            "kernel": kernels.get(call.kernel, f"TVM: {call.kernel}"),
            "instruction": instruction.get(call.kernel, "none"),
        }
        for call in program.calls
    )


class BoardArtifact(Artifact):
    """A C program in a temporary folder, until it is saved."""

    def __init__(self, code: BoardCode, recipe: str, key: str | None = None):
        super().__init__()
        self.key = key
        self._code, self._program, self._room, self._recipe = code, code.program, code.room, recipe
        self.others, self.integers = code.others, code.integers
        self.facts = {
            "code": "C program",
            "arena_bytes": self._program.arena_bytes,
            "workspace_bytes": self._program.workspace_bytes,
            "weight_bytes": self._program.weight_bytes,
            "object_bytes": (self._program.directory / "kernels.o").stat().st_size,
            "runner_bytes": (self._program.directory / "runner").stat().st_size,
        }

    @property
    def layers(self) -> tuple[dict[str, str], ...]:
        return self._code.layers

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """On this machine where the code fits it, on the emulator otherwise (slow: it is for checking)."""
        outputs = self._session.run([t.detach().contiguous().numpy() for t in inputs])
        return [torch.from_numpy(array) for array in outputs]

    def save(self, path: str | os.PathLike, report: dict[str, Any], golden: Golden) -> Path:
        fields = {
            "name": self._program.name,
            "recipe": self._recipe,
            "golden": tolerance(report, golden[1]),
            "report": report,
            **self._program.manifest_fields(),
        }
        return write_bundle(path, fields, {**self._program.members(), **golden_pair(golden)})

    @cached_property
    def _session(self) -> Session:
        """A bundle of its own, loaded: devices take bundles, so that what is tested is what is shipped."""
        inputs, outputs = (
            [torch.from_numpy(np.zeros([int(extent) for extent in spec.shape], spec.dtype)) for spec in specs]
            for specs in (self._program.inputs, self._program.outputs)
        )
        path = self.save(Path(self._room.name) / "model.planish", {"fake_quantized": 0}, (inputs, outputs))
        device = Device.get("local" if self._program.target.runs_here() else "emulator")
        return device.load(Bundle.open(path))
