"""Finding a compiler for a triple, and saying what to install where there is none."""

import ctypes
import importlib.util
import platform
import sys

import pytest

from planish.backends.linker import find_linker, link_shared
from planish.ir.errors import BuildError, UsageError

BOARD = "aarch64-linux-gnu"


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """A machine with neither GCC nor zig."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return tmp_path


def program(folder, name):
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_gcc_of_the_triple_comes_first(monkeypatch, tmp_path):
    program(tmp_path, "aarch64-linux-gnu-gcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_linker(BOARD).command == ("aarch64-linux-gnu-gcc",)
    assert find_linker(BOARD, "zig").command == (sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl")


def test_zig_steps_in_where_there_is_no_gcc(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_linker(BOARD).name == "zig"
    assert find_linker("x86_64-linux-gnu").command[-1] == "x86_64-linux-musl"
    assert find_linker("x86_64-linux-gnu", shared=True).command[-1] == "x86_64-linux-gnu.2.28"
    assert find_linker("arm-linux-gnueabihf").command[-1] == "arm-linux-musleabihf"
    assert find_linker("arm-linux-gnueabihf", shared=True).command[-1] == "arm-linux-gnueabihf.2.28"


def test_a_compiler_of_another_machine_is_not_taken(bare_machine):
    program(bare_machine, "gcc")
    with pytest.raises(BuildError):
        find_linker("riscv64-linux-gnu")


@pytest.mark.parametrize(("wanted", "missing"), [("auto", "neither GCC nor zig"), ("gcc", "no gcc"), ("zig", "no zig")])
def test_the_message_says_what_to_install(bare_machine, wanted, missing):
    message = f"{missing} here that links for aarch64; apt install gcc-aarch64-linux-gnu; or pip install ziglang"
    with pytest.raises(BuildError, match=message):
        find_linker(BOARD, wanted)


def test_an_unknown_linker_is_refused():
    with pytest.raises(UsageError, match="unknown linker 'lld'; known are auto, gcc, zig"):
        find_linker(BOARD, "lld")


def test_a_failed_build_shows_the_compilers_message(tmp_path):
    (tmp_path / "wrong.c").write_text("int main(void) { return missing; }\n")
    with pytest.raises(BuildError, match="missing"):
        find_linker("x86_64-linux-gnu").build(tmp_path, "wrong", ["wrong.c"])
    assert not (tmp_path / "wrong").exists()


def test_a_shared_library_is_linked_from_objects(tmp_path):
    (tmp_path / "seven.c").write_text("int seven(void) { return 7; }\n")
    find_linker(f"{platform.machine()}-linux-gnu").build(tmp_path, "seven.o", ["-c", "-fPIC", "seven.c"])
    link_shared(str(tmp_path / "libseven.so"), [str(tmp_path / "seven.o")], f"{platform.machine()}-linux-gnu")
    assert ctypes.CDLL(str(tmp_path / "libseven.so")).seven() == 7


def test_a_broken_object_is_quoted(tmp_path):
    (tmp_path / "broken.o").write_text("no object\n")
    with pytest.raises(BuildError, match=r"(?s)model.so: .*could not build it:.*broken.o"):
        link_shared(str(tmp_path / "model.so"), [str(tmp_path / "broken.o")], f"{platform.machine()}-linux-gnu")
