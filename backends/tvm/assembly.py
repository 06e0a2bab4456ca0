"""The assembly text of machine code, made on a second thread while the object file is written.

LLVM generates code anew for a text, which takes as long as for an object; TVM lets go of Python's lock meanwhile.
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tvm


def in_background(modules: Sequence[tvm.runtime.Module]) -> Callable[[], str]:
    """Begin with the texts of LLVM modules. The function that is returned waits for them."""
    twins = [_twin(module) for module in modules]
    thread = ThreadPoolExecutor(1, thread_name_prefix="planish-assembly")
    texts = thread.submit(lambda: "\n".join(twin.inspect_source("asm") for twin in twins))
    thread.shutdown(wait=False)
    return texts.result


def _twin(module: tvm.runtime.Module) -> tvm.runtime.Module:
    """A copy with an LLVM context of its own: no two threads may work in one."""
    with tempfile.TemporaryDirectory(prefix="planish-") as room:
        path = str(Path(room) / "kernels.ll")
        module.write_to_file(path)
        return tvm.runtime.load_module(path)  # type: ignore[return-value]
