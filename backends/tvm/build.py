"""Relax -> machine code: the passes in order, and a compiled model that takes and gives torch tensors."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

import os
import threading
from pathlib import Path

import torch
import tvm
from tvm import relax

from ...ir.errors import BuildError
from ...ir.files import write_aside
from ..linker import link_shared
from ..target import Target
from .quiet import without_scope_warnings
from .relax import RelaxModel

_transform = relax.transform

# Bytes that TVM assumes every array to be aligned to.
ALIGNMENT = 64


def tvm_target(target: Target) -> tvm.target.Target:
    """TVM's description of a CPU row."""
    facts: dict = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu, "num-cores": target.cores}
    if target.llvm_features:
        facts["mattr"] = list(target.llvm_features)
    return tvm.target.Target(facts)


def relax_passes() -> tvm.transform.Sequential:
    """From ops and kernel calls to one flat function of destination-style calls with planned memory."""
    return tvm.transform.Sequential(
        [
            relax.backend.DispatchSortScan(),
            _transform.LegalizeOps(),
            _transform.AnnotateTIROpPattern(),
            _transform.FoldConstant(),
            _transform.FuseOps(),
            _transform.FuseTIR(),
            _transform.RewriteDataflowReshape(),
            _transform.ToNonDataflow(),
            _transform.RemovePurityChecking(),
            _transform.CallTIRRewrite(),
            _transform.StaticPlanBlockMemory(),
            _transform.LowerAllocTensor(),
            _transform.KillAfterLastUse(),
            _transform.LowerRuntimeBuiltin(),
            _transform.ComputePrimValue(),
            _transform.VMShapeLower(),
            _transform.AttachGlobalSymbol(),
        ]
    )


def lower(model: RelaxModel, target: Target) -> tvm.IRModule:
    """The flat form that is compiled here, and that the C backend reads."""
    with tvm_target(target):
        return relax_passes()(model.module)


def storage_bytes(lowered: tvm.IRModule) -> int:
    """Bytes of activation memory that TVM's static plan allocates; 0 where a symbolic batch leaves it to run time."""
    total = 0
    for block in lowered["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and getattr(call.op, "name", "") == "relax.vm.alloc_storage":
                shape = call.args[0]
                known = isinstance(shape, relax.ShapeExpr) and isinstance(shape.values[0], tvm.tirx.IntImm)
                total += int(shape.values[0]) if known else 0
    return total


class CompiledModel:
    """A model compiled for this process by TVM. Called with torch tensors, gives a list of torch tensors."""

    def __init__(self, executable: tvm.runtime.Executable, arena_bytes: int = 0):
        self.executable, self.arena_bytes = executable, arena_bytes
        self._lock = threading.Lock()  # TVM's virtual machine has one stack
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        self._main = self._machine["main"]

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Inputs are read in place (no copy) when they are contiguous and aligned."""
        with self._lock:
            results = self._main(*map(_readable, inputs))
        # Given torch tensors, tvm-ffi hands torch tensors back.
        return [results] if isinstance(results, torch.Tensor) else list(results)

    def assembly(self) -> str:
        """The assembly text of all kernels."""
        return "\n".join(m.inspect_source("asm") for m in _native_modules(self.executable.mod))


def compile_model(model: RelaxModel, target: Target) -> CompiledModel:
    """Compile for a CPU that this process runs on. Raises BuildError when TVM fails."""
    try:
        lowered = lower(model, target)
        nothing_left = tvm.transform.Sequential([])
        executable = tvm.compile(lowered, target=tvm_target(target), relax_pipeline=nothing_left)
        return CompiledModel(executable, storage_bytes(lowered))
    except Exception as error:
        raise BuildError(target.name, f"TVM failed: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def save_library(model: CompiledModel, path: str | os.PathLike, target: Target) -> Path:
    """Write the compiled model as a shared library for the TVM runtime."""
    with write_aside(path) as draft, without_scope_warnings():
        model.executable.export_library(
            str(draft), fcompile=lambda library, objects, **_: link_shared(library, objects, target.triple)
        )
    return Path(path)


def set_threads(count: int) -> None:
    """How many threads TVM's pool may use in this process."""
    tvm.get_global_func("runtime.config_threadpool")(1, count)


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as kernels read it. A slice of a batch may start between two vector registers."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _native_modules(module: tvm.runtime.Module) -> list[tvm.runtime.Module]:
    found = [module] if module.kind == "llvm" else []
    return found + [inner for child in module.imports for inner in _native_modules(child)]
