"""TIR kernels -> one object file with plain C symbols."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import tvm
from tvm import tirx

from ...ir.errors import BuildError
from ..tvm.assembly import in_background
from ..tvm.codegen import lower_together
from .bare_abi import bare_abi
from .memory import round_up

ALIGNMENT = 64
ALLOCATION = re.compile(r"TVMBackendAllocWorkspace\(\d+, \d+, T\.uint64\((\d+)\)")
RUNTIME_CALL = re.compile(r"TVM(?:FFI|Backend)\w+|call_c?packed\w*")
LOOP_BODY = re.compile(r"__tvm_parallel_lambda(?:\.\d+)?")
# A function's label: global, or that of a loop's body, which LLVM keeps local with a prefix.
LABEL = re.compile(r"(?:\.L(?=__tvm_parallel))?([A-Za-z_][\w.]*):")
FUNCTION_END = re.compile(r"\.Lfunc_end\d+:")
# The calls that planish_runtime.c answers; the parallel launch appears only in LLVM code generation.
PROVIDED = {"TVMBackendAllocWorkspace", "TVMBackendFreeWorkspace"}


@dataclass(frozen=True)
class Kernels:
    """Compiled kernels. `module` writes the object file; workspace is in bytes for one thread."""

    module: tvm.runtime.Module
    workspace_bytes: int
    read_assembly: Callable[[], str]


def compile_kernels(kernels: dict[str, tirx.PrimFunc], target: tvm.target.Target, prefix: str) -> Kernels:
    """Compile PrimFuncs, given by symbol, to machine code.

    Raises BuildError for a kernel that takes a scalar, or needs more of TVM's runtime than workspaces and threads.
    """
    for name, kernel in kernels.items():
        for parameter in kernel.params:  # type: ignore[attr-defined]
            if not isinstance(parameter.ty, tirx.BufferType):
                what = f"the kernel takes a scalar '{parameter.name}'"
                raise BuildError(name, what, "a C program passes arrays only: static shapes")
    ordered = {tvm.ir.GlobalVar(name): kernels[name].with_attr("global_symbol", name) for name in sorted(kernels)}
    module = tirx.transform.BindTarget(target.with_host(target))(tvm.IRModule(ordered))
    lowered = lower_together(module, bare_abi(prefix, target))
    with ThreadPoolExecutor(1) as second:  # TVM lets go of Python's lock: printing costs no time where two cores are
        workspace = second.submit(largest_workspace, lowered)
        built = tvm.get_global_func("target.build.llvm")(lowered, target)
        return Kernels(built, workspace.result(), in_background([built]))


def largest_workspace(lowered: tvm.IRModule) -> int:
    """Bytes of the workspaces of the kernel that takes the most. Raises BuildError as `workspace_bytes` does."""
    texts = {str(f.attrs["global_symbol"]): f.script(show_meta=False) for f in lowered.functions.values()}  # type: ignore[attr-defined]
    return max((workspace_bytes(symbol, text) for symbol, text in texts.items()), default=0)


def workspace_bytes(symbol: str, text: str) -> int:
    """Bytes of all workspaces that a kernel takes from the runtime, read from its lowered text."""
    calls = RUNTIME_CALL.findall(text)
    foreign = sorted(set(calls) - PROVIDED)
    if foreign:
        raise BuildError(symbol, f"the kernel calls {foreign[0]} of TVM's runtime", "a C program has libc only")
    sizes = [int(size) for size in ALLOCATION.findall(text)]
    if len(sizes) != calls.count("TVMBackendAllocWorkspace"):
        raise BuildError(symbol, "the kernel allocates memory of a size that is not constant", "use static shapes")
    return sum(round_up(size, ALIGNMENT) for size in sizes)


def assembly_by_kernel(kernels: Kernels, prefix: str) -> dict[str, str]:
    """Assembly text by kernel name, each with the bodies of its parallel loops, which are functions of their own."""
    functions = split_functions(kernels.read_assembly())

    def whole(label: str, seen: set[str]) -> list[str]:
        lines = functions.get(label, [])
        loops = sorted(set(LOOP_BODY.findall("\n".join(lines))) - seen)
        seen.update(loops)
        return lines + [line for loop in loops for line in whole(loop, seen)]

    kernel_labels = (label for label in functions if label.startswith(prefix))
    return {label.removeprefix(prefix): "\n".join(whole(label, set())) for label in kernel_labels}


def split_functions(assembly: str) -> dict[str, list[str]]:
    """The lines of each function by its label, without those between functions."""
    functions: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in assembly.splitlines():
        if label := LABEL.match(line):
            lines = functions.setdefault(label[1], [])
        elif FUNCTION_END.match(line):
            lines = []
        lines.append(line)
    return functions
