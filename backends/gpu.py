"""A model for an NVIDIA GPU: TVM's CUDA pipeline, real machine code per architecture, made without a GPU."""

import os
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..ir.errors import BuildError
from ..ir.graph import Graph
from ..ir.ops import describe
from .artifact import Artifact, Edges, Golden, golden_pair
from .bundle import write_bundle
from .host import module_fields
from .target import Target
from .tvm.cuda import CudaBuild, CudaLibrary, build_cuda, relax_module
from .tvm.inference import freeze
from .tvm.relax import unsupported


def build_gpu(graph: Graph, target: Target, recipe: str) -> "GpuArtifact":
    """Compile a float graph of fixed shape to a cubin inside a host library.

    Raises BuildError for a fake-quantized graph, for ops that TVM cannot take, or without nvcc and NVRTC.
    """
    frozen = freeze(graph)
    if missing := unsupported(frozen, own_kernels=False):
        listed = "; ".join(describe(node) for node in missing[:8])
        raise BuildError(target.name, f"{len(missing)} calls have no CUDA form: {listed}", "build the float model")
    made = build_cuda(
        relax_module(frozen.exported_program()), arch=target.cuda_arch, triple=target.triple, cpu=target.cpu
    )
    return GpuArtifact(frozen, made, target, recipe)


class GpuArtifact(Artifact):
    """A host library with a cubin. It runs only where a CUDA driver is."""

    def __init__(self, graph: Graph, made: CudaBuild, target: Target, recipe: str):
        super().__init__()
        self._edges, self._made, self._target, self._recipe = Edges.of(graph), made, target, recipe
        self._room = tempfile.TemporaryDirectory(prefix="planish-")
        self.facts = {"code": f"CUDA {made.arch}", "compiler": made.compiler, "cubin_bytes": len(made.cubin)}

    @property
    def layers(self) -> tuple[dict[str, str], ...]:
        return tuple(
            {"node": kernel.name, "kernel": f"CUDA, {kernel.threads} threads a block", "instruction": self._made.arch}
            for kernel in self._made.kernels
        )

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in self._library(*(t.detach().numpy() for t in inputs))]

    def save(self, path: str | os.PathLike, report: dict[str, Any], golden: Golden) -> Path:
        library = self._made.save(Path(self._room.name) / "model.so")
        fields = module_fields(self._edges, self._target, self._recipe, report, golden)
        return write_bundle(path, fields, {"model.so": library, **golden_pair(golden)})

    @cached_property
    def _library(self) -> CudaLibrary:
        return CudaLibrary(self._made.save(Path(self._room.name) / "model.so"))
