"""Relax -> machine code: the passes in order, and a compiled model that takes and gives torch tensors."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import tvm
from tvm import relax, tirx
from tvm.relax import vm_build
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from ...ir.errors import BuildError
from ...ir.files import write_aside
from ..linker import link_shared
from ..target import Target
from .codegen import compile_parts
from .lowering import lower_kernels
from .quiet import without_scope_warnings
from .relax import RelaxModel
from .threads import start_pool

_transform = relax.transform

# Bytes that TVM assumes every array to be aligned to.
ALIGNMENT = 64


def tvm_target(target: Target) -> tvm.target.Target:
    """TVM's description of a CPU row."""
    facts: dict = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu, "num-cores": target.cores}
    if target.llvm_features:
        facts["mattr"] = list(target.llvm_features)
    if target.triple.endswith("hf"):
        facts["mfloat-abi"] = "hard"  # TVM's own choice would pass floats in general registers
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
    """A model compiled for this process by TVM. Called with torch tensors, gives a list of torch tensors.

    module       TVM's executable, or the module of a library that was loaded
    library      the file that it was loaded from, in a folder that goes with the model
    read_assembly  gives the assembly text of all kernels; of an executable's own if not given
    """

    def __init__(
        self,
        module: Any,
        arena_bytes: int = 0,
        *,
        library: Path | None = None,
        room: tempfile.TemporaryDirectory | None = None,
        read_assembly: Callable[[], str] | None = None,
    ):
        self.module, self.arena_bytes, self.library, self._room = module, arena_bytes, library, room
        self._read_assembly = read_assembly or (lambda: "\n".join(map(_assembly_of, _native_modules(module.mod))))
        self._lock = threading.Lock()  # TVM's virtual machine has one stack
        with without_scope_warnings():
            self._machine = relax.VirtualMachine(module, tvm.cpu())
        self._main = self._machine["main"]

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Inputs are read in place (no copy) when they are contiguous and aligned."""
        start_pool()
        with self._lock:
            results = self._main(*map(_readable, inputs))
        # Given torch tensors, tvm-ffi hands torch tensors back; given none (a region of constants), its own.
        found = [results] if isinstance(results, (torch.Tensor, tvm.runtime.Tensor)) else results
        return [each if isinstance(each, torch.Tensor) else torch.from_dlpack(each).clone() for each in found]

    def assembly(self) -> str:
        """The assembly text of all kernels."""
        return self._read_assembly()

    def kernel_seconds(self, inputs: Sequence[torch.Tensor], runs: int) -> list[tuple[str, float]]:
        """(symbol, least seconds of some runs) of every kernel call of one inference, in order."""
        taken: list[list[float]] = []
        called: list[str] = []
        started = place = 0

        def note(_function: Any, symbol: str, is_before: bool, *_arguments: Any) -> None:
            nonlocal started, place
            if symbol.startswith("vm."):
                return
            if is_before:
                started = time.perf_counter_ns()
                return
            spent = (time.perf_counter_ns() - started) / 1e9
            if place == len(called):
                called.append(symbol)
                taken.append([])
            taken[place].append(spent)
            place += 1

        start_pool()
        with self._lock:
            machine = relax.VirtualMachine(self.module, tvm.cpu())
            machine.set_instrument(note)
            for _ in range(runs):
                place = 0
                machine["main"](*map(_readable, inputs))
        return [(symbol, min(times)) for symbol, times in zip(called, taken, strict=True)]


def compile_model(model: RelaxModel, target: Target) -> CompiledModel:
    """Compile for a CPU that this process runs on. Raises BuildError when TVM fails.

    Machine code is generated once, into a library that is loaded here and that `save_library` copies. Where there is
    no linker, TVM links in memory.
    """
    try:
        lowered = lower(model, target)
        kernels = {var: f for var, f in lowered.functions.items() if isinstance(f, tirx.PrimFunc)}
        room = tempfile.TemporaryDirectory(prefix="planish-")
        parts = compile_parts(tvm.IRModule(kernels, attrs=lowered.attrs), tvm_target(target), Path(room.name))
        arena = storage_bytes(lowered)
        try:
            executable = _linked(lowered, target, [part.library() for part in parts])
            library = _export(executable, Path(room.name) / "model.so", target)
        except BuildError:
            parts.read_assembly()  # no two threads may work in one LLVM context
            executable = _linked(lowered, target, [part.module for part in parts])
            return CompiledModel(executable, arena, read_assembly=parts.read_assembly)
        return _loaded(library, arena, room, parts.read_assembly)
    except Exception as error:
        raise BuildError(target.name, f"TVM failed: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def _linked(lowered: tvm.IRModule, target: Target, kernels: list[tvm.runtime.Module]) -> tvm.runtime.Executable:
    """The calls of a flat model in the virtual machine's form, with the modules of its kernels and its constants."""
    builder = relax.ExecBuilder()
    vm_build._vmcodegen(builder, lowered)
    constants = dict((lowered.attrs or {}).get("const_name_to_constant", {}))
    return vm_build._vmlink(builder, tvm_target(target), ext_libs=kernels, params=constants)


def load_compiled(library: bytes, arena_bytes: int) -> CompiledModel:
    """A model from the bytes of the library that `compile_model` made on this machine. It has no assembly text."""
    room = tempfile.TemporaryDirectory(prefix="planish-")
    path = Path(room.name) / "model.so"
    path.write_bytes(library)
    return _loaded(path, arena_bytes, room, str)


def save_library(model: CompiledModel, path: str | os.PathLike, target: Target) -> Path:
    """Write the compiled model as a shared library for the TVM runtime."""
    with write_aside(path) as draft:
        if model.library is None:
            _export(model.module, draft, target)
        else:
            shutil.copyfile(model.library, draft)
    return Path(path)


def _export(executable: tvm.runtime.Executable, path: Path, target: Target) -> Path:
    def link(library: str, objects: list[str], **_options: Any) -> None:
        link_shared(library, objects, target.triple)

    # Without it TVM would write the constants as C source, which takes a C compiler minutes.
    link.get_target_triple = lambda: target.triple  # type: ignore[attr-defined]
    with without_scope_warnings():
        executable.export_library(str(path), fcompile=link)
    return path


def _loaded(library: Path, arena: int, room: tempfile.TemporaryDirectory, assembly: Callable[[], str]) -> CompiledModel:
    with without_scope_warnings():
        module = tvm.runtime.load_module(str(library))
    return CompiledModel(module, arena, library=library, room=room, read_assembly=assembly)


def _tir_pipeline() -> tuple[tvm.transform.Pass, Callable, Callable]:
    """How kernels become machine code for this process, in the form in which TVM's `build` asks for it."""

    @tvm.transform.module_pass(opt_level=0, name="planish.LowerKernels")
    def run(module, _context):
        return lower_kernels(module, tirx.transform.MakePackedAPI())

    def nothing_left() -> tvm.transform.Pass:
        return tvm.transform.Sequential([])

    return run, nothing_left, nothing_left


TIR_PIPELINE = "planish"
register_tir_pipeline(TIR_PIPELINE, _tir_pipeline)


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as kernels read it. A slice of a batch may start between two vector registers."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _assembly_of(module: tvm.runtime.Module) -> str:
    return module.inspect_source("asm")


def _native_modules(module: tvm.runtime.Module) -> list[tvm.runtime.Module]:
    found = [module] if module.kind == "llvm" else []
    return found + [inner for child in module.imports for inner in _native_modules(child)]
