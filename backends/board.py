"""A model for a board: a C program in a bundle, run on the board, here or on the emulator."""

import os
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..ir.graph import Graph
from .artifact import Artifact, Golden, golden_pair, tolerance
from .bundle import Bundle, write_bundle
from .c import CProgram, emit, link_library, link_runner
from .device import Device
from .session import Session
from .target import Target
from .tvm.build import lower
from .tvm.instructions import multiply_accumulate
from .tvm.relax import RelaxModel, to_relax


def build_board(graph: Graph, target: Target, recipe: str) -> "BoardArtifact":
    """Compile a graph of fixed shape to a C program and its runner.

    Raises BuildError where an op has no form in C, or no linker for the target is installed.
    """
    model = to_relax(graph, target)
    room = tempfile.TemporaryDirectory(prefix="planish-")
    program = emit(lower(model, target), target, Path(room.name) / "program", layers=model.layers_by_symbol(),
                   edges=(graph.inputs, graph.outputs))  # fmt: skip
    link_runner(program)
    if target.runs_here():
        link_library(program)
    kernels = {layer.symbol: layer.kernel for layer in model.layers}
    return BoardArtifact(program, room, recipe, kernels, model)


class BoardArtifact(Artifact):
    """A C program in a temporary folder, until it is saved."""

    def __init__(self, program: CProgram, room: tempfile.TemporaryDirectory, recipe: str,
                 kernels: dict[str, str], model: RelaxModel):  # fmt: skip
        super().__init__()
        self._program, self._room, self._recipe = program, room, recipe
        self._kernels = kernels
        self.others, self.integers = model.others, model.integers
        self.facts = {
            "code": "C program",
            "arena_bytes": program.arena_bytes,
            "workspace_bytes": program.workspace_bytes,
            "weight_bytes": program.weight_bytes,
            "object_bytes": (program.directory / "kernels.o").stat().st_size,
            "runner_bytes": (program.directory / "runner").stat().st_size,
        }

    @cached_property
    def layers(self) -> tuple[dict[str, str], ...]:
        # Reading the instructions means generating the code a second time, as text.
        instruction = {symbol: multiply_accumulate(text) for symbol, text in self._program.assembly().items()}
        return tuple(
            {
                "node": call.layer,
                "kernel": self._kernels.get(call.kernel, f"TVM: {call.kernel}"),
                "instruction": instruction.get(call.kernel, "none"),
            }
            for call in self._program.calls
        )

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
