"""From C sources and an object file to programs: GCC where it is, zig from PyPI anywhere else."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..ir.errors import BuildError, UsageError

LINKERS = ("auto", "gcc", "zig")
COMPILE = ("-O2", "-std=gnu11")
# Names of symbols and build identifiers would change the bytes from folder to folder.
REPRODUCIBLE = ("-s", "-Wl,--build-id=none")
TIMEOUT_SECONDS = 600
# Debian 10 and Raspberry Pi OS of 2019 have it, as do the wheels of PyTorch.
OLDEST_GLIBC = "2.28"


@dataclass(frozen=True)
class Linker:
    name: str
    command: tuple[str, ...]

    def build(self, directory: Path, output: str, arguments: list[str]) -> Path:
        """Run the compiler in `directory`. Raises BuildError with its messages when it fails."""
        command = [*self.command, *COMPILE, *REPRODUCIBLE, *arguments, "-o", output]
        try:
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise BuildError(output, f"{self.name} could not build it ({e})", "try the other linker") from None
        if done.returncode:
            raise BuildError(output, f"{self.name} could not build it:\n{done.stderr.strip()[-4000:]}\n", "report this")
        return directory / output


def link_shared(library: str, objects: list[str], triple: str) -> None:
    """Link `objects` into the shared library `library` for `triple`.

    Raises BuildError when there is no linker for `triple` on this machine, or when it fails.
    """
    path = Path(library).absolute()
    find_linker(triple, shared=True).build(path.parent, path.name, ["-shared", "-fPIC", *map(os.path.abspath, objects)])


def linkers_of(triple: str) -> list[str]:
    """The programs that link programs and libraries, links followed: `gcc-12` and `gcc-13` give other bytes.

    Raises BuildError as `find_linker` does.
    """
    commands = [find_linker(triple).command, find_linker(triple, shared=True).command]
    return [" ".join((os.path.realpath(shutil.which(first) or first), *rest)) for first, *rest in commands]


def find_linker(triple: str, wanted: str = "auto", *, shared: bool = False) -> Linker:
    """A compiler and linker for `triple` ("aarch64-linux-gnu"); shared: for libraries that a glibc program loads.

    wanted: "gcc", "zig", or "auto" for the first of the two that is there.
    Raises BuildError, with what to install, when there is none; UsageError for another `wanted`.
    """
    if wanted not in LINKERS:
        raise UsageError("linker", f"unknown linker '{wanted}'", f"known are {', '.join(LINKERS)}")
    found = None
    if wanted in ("auto", "gcc"):
        found = find_gcc(triple)
    if not found and wanted in ("auto", "zig"):
        found = find_zig(triple, shared)
    if not found:
        machine = triple.split("-")[0]
        missing = "neither GCC nor zig" if wanted == "auto" else f"no {wanted}"
        package = "gcc" if machine == platform.machine() else f"gcc-{triple.replace('_', '-')}"
        what = f"there is {missing} here that links for {machine}"
        raise BuildError(triple, what, f"apt install {package}", "or pip install ziglang")
    return found


def find_gcc(triple: str) -> Linker | None:
    native = triple.split("-")[0] == platform.machine()
    for name in (f"{triple}-gcc", *(("gcc", "cc", "clang") if native else ())):
        if shutil.which(name):
            return Linker(name, (name,))
    return None


def find_zig(triple: str, shared: bool) -> Linker | None:
    """zig brings musl, so that static programs need nothing of the machine that runs them, and glibc's interface."""
    if not importlib.util.find_spec("ziglang"):
        return None
    machine, _, environment = triple.split("-")
    convention = environment.removeprefix("gnu")  # "eabihf" of 32-bit ARM, whose floats travel in float registers
    system = f"gnu{convention}.{OLDEST_GLIBC}" if shared else f"musl{convention}"
    return Linker("zig", (sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-{system}"))
