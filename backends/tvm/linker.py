"""Linking objects into a shared library for this machine's Linux or another."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ...ir.errors import BuildError


def link_shared(path: str, objects: list[str], triple: str) -> None:
    """Link `objects` into the library `path` for `triple` (`"aarch64-linux-gnu"`).

    Raises BuildError when there is no linker for `triple` on this machine, or when it fails.
    """
    command = [*find_linker(triple), "-shared", "-fPIC", "-Wl,--build-id=none", "-s", "-o", path, *objects]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(triple, f"{command[0]} could not link {Path(path).name}:\n{done.stderr.strip()}")


def find_linker(triple: str) -> list[str]:
    """The start of a command line that links for `triple`: a GCC of that name, this machine's own, or zig from PyPI."""
    for name in (f"{triple}-gcc", *(("cc", "gcc", "clang") if triple.split("-")[0] == platform.machine() else ())):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", triple]
    raise BuildError(
        triple,
        "there is no linker for this target here",
        f"apt install gcc-{triple}",
        "or pip install 'planish[deploy]'",
    )
