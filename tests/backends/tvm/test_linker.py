"""Linking a shared library, by whichever linker is there."""

import platform
import shutil

import pytest

from planish.backends.tvm import linker
from planish.ir.errors import BuildError

NATIVE = f"{platform.machine()}-linux-gnu"


def test_gcc_for_the_target_comes_first_then_zig(monkeypatch):
    monkeypatch.setattr(linker.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert linker.find_linker("aarch64-linux-gnu") == ["aarch64-linux-gnu-gcc"]
    monkeypatch.setattr(linker.shutil, "which", lambda name: None)
    assert linker.find_linker("aarch64-linux-gnu")[1:] == ["-m", "ziglang", "cc", "-target", "aarch64-linux-gnu"]


def test_this_machines_own_compiler_links_for_it_only(monkeypatch):
    monkeypatch.setattr(linker.shutil, "which", lambda name: name if name == "cc" else None)
    assert linker.find_linker(NATIVE) == ["cc"]
    assert "ziglang" in linker.find_linker("riscv64-linux-gnu")


def test_without_a_linker_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(linker.shutil, "which", lambda name: None)
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"apt install gcc-aarch64-linux-gnu; or pip install 'planish\[deploy\]'"):
        linker.link_shared("model.so", [], "aarch64-linux-gnu")


def test_a_linker_that_fails_is_quoted(tmp_path):
    assert shutil.which("cc")
    (tmp_path / "broken.o").write_text("no object\n")
    with pytest.raises(BuildError, match=r"(?s)could not link model.so:.*broken.o"):
        linker.link_shared(str(tmp_path / "model.so"), [str(tmp_path / "broken.o")], NATIVE)
