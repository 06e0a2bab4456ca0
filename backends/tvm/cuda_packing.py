"""Putting a cubin into an exported TVM library.

Where TVM finds no CUDA runtime, it keeps the kernels' source in a stand-in module that exports as kind `cuda`, format
`cuda`: the board would then have to compile it. A board takes format `cubin` just as well (TVM's own CUDA module reads
and writes both), so this module writes the imports' bytes as TVM does and swaps that one payload. The layout is
the one that tvm-ffi's `library_module.cc` reads; the tests load the result through TVM's own CUDA runtime.
"""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tvm
from tvm_ffi import Module

from ...ir.errors import BuildError

_SOURCE_FORMAT = b"cuda"
_BINARY_FORMAT = b"cubin"
_DEVICE_MODULE = b"cuda"
_HOST_LIBRARY = b"_lib"


@contextmanager
def source_modules() -> Iterator[None]:
    """Makes TVM leave CUDA modules as source, also on a machine with a driver: the same build everywhere."""
    name = "TVM_COMPILE_FORCE_FALLBACK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def cuda_source(module: Module) -> str:
    """The CUDA C of the one device module that `module` imports. Raises BuildError when no kernel runs on the GPU."""
    found = [part.inspect_source() for part in _imported(module) if part.kind == "cuda"]
    if len(found) != 1:
        raise BuildError("cuda", f"the model has {len(found)} modules of GPU kernels", "expected one")
    return found[0]


def _imported(module: Module) -> Iterator[Module]:
    for part in module.imports:
        yield part
        yield from _imported(part)


def packer(source: str, cubin: bytes) -> Callable[[Module, bool, str, str], str]:
    """The `fpack_imports` of `export_library` that writes `cubin` in the place of `source`."""

    def pack(module: Module, is_system_library: bool, prefix: str, folder: str) -> str:
        imports = tvm.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
        imports = with_binary(imports, source.encode(), cubin)
        host = next(part for part in _imported(module) if part.kind == "llvm")
        target = host.get_function("_get_target_string")()
        blob = tvm.get_global_func("codegen.codegen_blob")(imports, is_system_library, target, prefix)
        path = str(Path(folder) / "imports.o")
        blob.write_to_file(path)
        return path

    return pack


def with_binary(imports: bytes, source: bytes, cubin: bytes) -> bytes:
    """`imports` (size, import tree, then kind and payload of each module) with the cubin in the place of the source."""
    reader = _Reader(imports, start=8)
    modules = len(reader.numbers()) - 1
    reader.numbers()
    parts = [imports[8 : reader.offset]]
    swapped = 0
    for _ in range(modules):
        kind = reader.text()
        parts.append(_text(kind))
        if kind == _HOST_LIBRARY:
            continue
        payload = reader.text()
        if kind == _DEVICE_MODULE:
            payload = _binary_payload(payload, source, cubin)
            swapped += 1
        parts.append(_text(payload))
    if swapped != 1 or reader.offset != len(imports):
        raise BuildError("cuda", "TVM packs a library's imports in another layout", "install apache-tvm==0.27.0.post1")
    body = b"".join(parts)
    return struct.pack("<Q", len(body)) + body


def _binary_payload(payload: bytes, source: bytes, cubin: bytes) -> bytes:
    """A device module's payload is its format, the launch facts of its kernels, and its code."""
    head, tail = _text(_SOURCE_FORMAT), _text(source)
    if not (payload.startswith(head) and payload.endswith(tail)):
        raise BuildError("cuda", "TVM packs a CUDA module in another layout", "install apache-tvm==0.27.0.post1")
    return _text(_BINARY_FORMAT) + payload[len(head) : -len(tail)] + _text(cubin)


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


class _Reader:
    def __init__(self, data: bytes, start: int):
        self.data = data
        self.offset = start

    def count(self) -> int:
        self.offset += 8
        return struct.unpack_from("<Q", self.data, self.offset - 8)[0]

    def numbers(self) -> list[int]:
        return [self.count() for _ in range(self.count())]

    def text(self) -> bytes:
        length = self.count()
        self.offset += length
        return self.data[self.offset - length : self.offset]
