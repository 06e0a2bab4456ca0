"""The swap of source for machine code inside a library's packed imports."""

import os
import struct

import pytest

from planish.backends.tvm.cuda_packing import source_modules, with_binary
from planish.ir.errors import BuildError

SOURCE, CUBIN = b"void kernel() {}", b"\x7fELF machine code"


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def imports(*parts: bytes) -> bytes:
    """Three modules in a row: a virtual machine, the host library, the kernels."""
    tree = struct.pack("<Q4Q", 4, 0, 1, 2, 2) + struct.pack("<Q2Q", 2, 1, 2)
    body = tree + b"".join(parts)
    return struct.pack("<Q", len(body)) + body


VM = text(b"relax.VMExecutable") + text(b"bytecode")
HOST = text(b"_lib")


def kernels(form: bytes, code: bytes) -> bytes:
    return text(b"cuda") + text(text(form) + b"launch facts" + text(code))


def test_only_the_code_and_its_format_change():
    packed = imports(VM, HOST, kernels(b"cuda", SOURCE))
    assert with_binary(packed, SOURCE, CUBIN) == imports(VM, HOST, kernels(b"cubin", CUBIN))


@pytest.mark.parametrize(
    "parts",
    [
        (VM, HOST, kernels(b"ptx", SOURCE)),
        (VM, HOST, kernels(b"cuda", b"other source")),
        (VM, HOST, text(b"opencl") + text(b"")),
        (VM, HOST, kernels(b"cuda", SOURCE), b"more"),
        (VM, kernels(b"cuda", SOURCE), kernels(b"cuda", SOURCE)),
    ],
)
def test_another_layout_is_refused(parts):
    with pytest.raises(BuildError, match="in another layout; install apache-tvm"):
        with_binary(imports(*parts), SOURCE, CUBIN)


@pytest.mark.parametrize("before", [None, "0"])
def test_the_environment_is_as_before(monkeypatch, before):
    name = "TVM_COMPILE_FORCE_FALLBACK"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with pytest.raises(KeyError), source_modules():
        assert os.environ[name] == "1"
        raise KeyError
    assert os.environ.get(name) == before
