"""Float models on CUDA: Relax to real machine code for one GPU architecture, on a machine with no GPU and no driver.

TVM generates the host code and the kernels' CUDA C; `cuda_compiler` makes the cubin; `cuda_packing` puts it into the
exported library. What comes out is an ordinary TVM library that a machine with a CUDA 13 driver loads and runs.
No GPU ran any of this: the tests run the kernels' source on an emulated device.
"""

import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax
from tvm.relax.backend.cuda import pipeline as defaults
from tvm.relax.frontend.torch import from_exported_program

from ...ir.errors import BuildError, UsageError
from ...ir.files import write_aside
from ..linker import link_shared
from . import cubin
from .cubin import Kernel
from .cuda_compiler import compile_cubin, find_compiler
from .cuda_packing import cuda_source, packer, source_modules
from .cuda_schedules import keep_growing_kernels_apart, schedule_rules
from .quiet import without_scope_warnings

# The first one.
DEVICE = 0

_ARCHITECTURE = re.compile(r"sm_\d{2,3}")


@dataclass(frozen=True)
class CudaBuild:
    """A model built for one GPU architecture and one host.

    source: the kernels in CUDA C, as the compiler got it. cubin: their machine code for `arch`. triple: the host's.
    """

    executable: relax.VMExecutable
    arch: str
    triple: str
    compiler: str
    source: str
    cubin: bytes
    kernels: tuple[Kernel, ...]

    def save(self, path: str | Path) -> Path:
        """Write the library for the host `triple`, weights and cubin inside; its bytes are the same every time.

        Raises BuildError when this machine has no linker for `triple`.
        """
        with write_aside(path) as draft, without_scope_warnings():
            self.executable.export_library(
                str(draft),
                fcompile=lambda name, objects, **_: link_shared(name, objects, self.triple),
                fpack_imports=packer(self.source, self.cubin),
            )
        return Path(path)

    def facts(self) -> dict:
        """What a report says of the build, as JSON-able values."""
        kernels = [asdict(kernel) for kernel in self.kernels]
        return {"arch": self.arch, "triple": self.triple, "compiler": self.compiler, "kernels": kernels}


def relax_module(program: torch.export.ExportedProgram) -> tvm.IRModule:
    """The Relax module of an exported PyTorch program: weights as constants, function `main`.

    Raises BuildError naming the ops that TVM's importer does not know.
    """
    try:
        return from_exported_program(program, keep_params_as_input=False, run_ep_decomposition=True)
    except AssertionError as error:
        raise BuildError("cuda", f"TVM cannot import the model ({error})", "leave these ops in PyTorch") from error


def build_cuda(
    module: tvm.IRModule,
    *,
    arch: str,
    triple: str = f"{platform.machine()}-linux-gnu",
    cpu: str = "",
    compiler: str = "auto",
    cuda_graph: bool = False,
) -> CudaBuild:
    """Compile the Relax function `main` for a GPU of `arch` (`"sm_87"`) in a host of `triple` and `cpu` (LLVM names).

    compiler: `"nvcc"`, `"nvrtc"`, or `"auto"`. cuda_graph: replay the kernels as one CUDA graph, for static shapes.
    Raises UsageError for an unknown architecture or compiler, BuildError when there is no compiler or it fails.
    """
    if not _ARCHITECTURE.fullmatch(arch):
        raise UsageError("cuda", f"the architecture {arch!r} is unknown", "expected a form like 'sm_80'")
    kernel_compiler = find_compiler(compiler)
    executable = _compile(module, _target(arch, triple, cpu), cuda_graph)
    source = cuda_source(executable.mod)
    code = compile_cubin(source, arch, kernel_compiler)
    return CudaBuild(executable, arch, triple, kernel_compiler.version, source, code, cubin.kernels(code))


class CudaLibrary:
    """A saved build, loaded and ready to run on this machine's first CUDA device.

    memory: `"pooled"` reuses freed buffers, `"naive"` asks the driver for each one.
    Raises UsageError when this machine has no CUDA device.
    """

    def __init__(self, path: str | Path, *, memory: str = "pooled"):
        self.device: Any = tvm.cuda(DEVICE)
        if not self.device.exist:
            raise UsageError("cuda", "this machine has no CUDA device that TVM can use", "run the library where one is")
        with without_scope_warnings():
            library: Any = tvm.runtime.load_module(str(path))
        self.machine = relax.VirtualMachine(library, self.device, memory_cfg=memory)

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run `main` on arrays in host memory; the outputs come back to host memory."""
        on_device = [tvm.runtime.tensor(np.ascontiguousarray(array), self.device) for array in inputs]
        outputs = self.machine["main"](*on_device)
        return [output.numpy() for output in (outputs if isinstance(outputs, Sequence) else [outputs])]


def _target(arch: str, triple: str, cpu: str) -> tvm.target.Target:
    """The limits that every supported GPU keeps: TVM would otherwise ask a device for them."""
    device = {"kind": "cuda", "arch": arch, "thread_warp_size": 32}
    device |= {"max_threads_per_block": 1024, "max_shared_memory_per_block": 48 << 10}
    host = {"kind": "llvm", "mtriple": triple} | ({"mcpu": cpu} if cpu else {})
    return tvm.target.Target(device, host=host)


def _compile(module: tvm.IRModule, target: tvm.target.Target, cuda_graph: bool) -> relax.VMExecutable:
    options = {"relax.backend.use_cuda_graph": cuda_graph}
    with target, source_modules(), tvm.transform.PassContext(opt_level=3, config=options):
        try:
            built: Any = relax.build(module, target=target, relax_pipeline=_pipeline(target))
            return built
        except (RuntimeError, TypeError, ValueError) as error:
            first = str(error).strip().splitlines()[-1]
            raise BuildError("cuda", f"TVM could not compile the model: {first}") from error


def _pipeline(target: tvm.target.Target) -> tvm.transform.Pass:
    """TVM's CUDA pipeline, with batch norms taken apart and folded first and our choice of schedules."""
    steps = relax.transform
    return tvm.transform.Sequential(
        [
            steps.DecomposeOpsForInference(),
            steps.FoldConstant(),
            *defaults.library_dispatch_passes(target),
            steps.LegalizeOps(),
            steps.AnnotateTIROpPattern(),
            keep_growing_kernels_apart,
            steps.FoldConstant(),
            steps.FuseOps(),
            steps.FuseTIR(),
            schedule_rules(),
            *defaults.dataflow_lower_passes(target),
            *defaults.finalize_passes(target),
        ]
    )
