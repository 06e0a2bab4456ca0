"""PrimFuncs -> machine code: a model's kernels in a few parts, which the machine's cores lower and compile together.

TVM lets go of Python's lock while it lowers and generates code, and every part has an LLVM context of its own.
"""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportAttributeAccessIssue=false

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import tirx

from .lowering import lower_kernels

# The same number on every machine, so that the code is the same. More parts balance cores better, and each costs what
# an LLVM module costs: eight take a tenth more CPU time than one.
PARTS = 6


@dataclass(frozen=True)
class Part:
    """Some of a model's kernels as machine code.

    module  LLVM's module, which can be linked in memory; object  the file of its code; symbols  its functions
    """

    module: tvm.runtime.Module
    object: Path
    symbols: tuple[str, ...]

    def library(self) -> tvm.runtime.Module:
        """The object file as a module that an executable can import and export."""
        return tvm.runtime.load_static_library(str(self.object), self.symbols)


@dataclass(frozen=True)
class Parts:
    """The parts in order, and `read_assembly`, which waits for the assembly text of all of them."""

    parts: tuple[Part, ...]
    read_assembly: Callable[[], str]

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)


def compile_parts(kernels: tvm.IRModule, target: tvm.target.Target, folder: Path) -> Parts:
    """Compile PrimFuncs for a CPU, object files in `folder`. Raises what TVM raises.

    The texts, for which LLVM generates code anew, are made behind the object files while the caller goes on.
    """
    with _pool() as pool:
        parts = tuple(
            pool.map(lambda share: _compile_part(share[1], target, folder / f"kernels{share[0]}.o"), _shares(kernels))
        )
        texts = [pool.submit(part.module.inspect_source, "asm") for part in parts]
    return Parts(parts, lambda: "\n".join(map(Future.result, texts)))


def lower_together(kernels: tvm.IRModule, convention: tvm.transform.Pass) -> tvm.IRModule:
    """`lower_kernels` on all cores."""
    with _pool() as pool:
        lowered = pool.map(lambda share: lower_kernels(share[1], convention), _shares(kernels))
        functions = {var.name_hint: (var, f) for module in lowered for var, f in module.functions.items()}
    in_order = [functions.pop(var.name_hint) for var in kernels.functions if var.name_hint in functions]
    return tvm.IRModule(dict([*in_order, *functions.values()]), attrs=kernels.attrs)


def _shares(kernels: tvm.IRModule) -> list[tuple[int, tvm.IRModule]]:
    functions = list(kernels.functions.items())
    shares = (dict(functions[start::PARTS]) for start in range(PARTS))
    return [(number, tvm.IRModule(share, attrs=kernels.attrs)) for number, share in enumerate(shares) if share]


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that finish what they were given after the block is left."""
    pool = ThreadPoolExecutor(min(PARTS, os.cpu_count() or 1), thread_name_prefix="planish-codegen")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False)


def _compile_part(kernels: tvm.IRModule, target: tvm.target.Target, path: Path) -> Part:
    bound = tirx.transform.BindTarget(target.with_host(target))(kernels)
    lowered = lower_kernels(bound, tirx.transform.MakePackedAPI())
    module = tvm.get_global_func("target.build.llvm")(lowered, target)
    module.write_to_file(str(path))
    symbols = tuple(str(function.attrs["global_symbol"]) for function in lowered.functions.values())
    return Part(module, path, symbols)
