"""Command lines that run a foreign Linux program here: QEMU user mode, or Unicorn from PyPI."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..ir.errors import UsageError

ENGINES = ("qemu", "unicorn")
# The environment variable that chooses the engine of the device `emulator`.
CHOICE = "PLANISH_EMULATOR"
UNICORN_SCRIPT = Path(__file__).with_name("unicorn_linux.py")
# Features of processors that Unicorn's most capable one lacks.
UNICORN_LACKS = frozenset({"i8mm"})
INSTALL = ("apt install qemu-user", "or pip install unicorn")


def emulator_command(target: Mapping[str, Any], engine: str = "") -> tuple[str, list[str]]:
    """The engine that can run a program of this target, and the command line to put in front of the program.

    target: a Target row as a dict
    engine: "qemu", "unicorn", or "" for the environment's choice or the first of the two that is there
    Raises UsageError when there is none, or when none emulates the target's CPU.
    """
    wanted = engine or os.environ.get(CHOICE, "")
    if wanted and wanted not in ENGINES:
        raise UsageError("emulator", f"unknown engine '{wanted}'", f"known are {', '.join(ENGINES)}")
    core, architecture = target["emulator_cpu"], target["triple"].split("-")[0]
    beyond = sorted(UNICORN_LACKS.intersection(target["features"]))
    if not core:
        what = f"no emulated core runs code for target '{target['name']}'"
        raise UsageError("emulator", what, "run the bundle on device 'local' of such a machine")
    makers = {"qemu": qemu} if beyond else {"qemu": qemu, "unicorn": unicorn}
    if beyond and (wanted == "unicorn" or not qemu(architecture, core)):
        what = f"Unicorn has no {', '.join(beyond)}, which target '{target['name']}' needs"
        raise UsageError("emulator", what, "use QEMU", INSTALL[0])
    for name in (wanted,) if wanted else makers:
        command = makers[name](architecture, core)
        if command:
            return name, list(command)
    what = f"there is no {wanted or 'QEMU or Unicorn'} here that emulates {architecture}"
    raise UsageError("emulator", what, *(INSTALL if architecture == "aarch64" else INSTALL[:1]))


def qemu(architecture: str, core: str) -> Sequence[str]:
    for name in (f"qemu-{architecture}", f"qemu-{architecture}-static"):
        if path := shutil.which(name):
            return (path, "-cpu", core)
    return ()


def unicorn(architecture: str, core: str) -> Sequence[str]:
    """Unicorn's x86 has no AVX, which every x86 target here needs: it serves ARM only."""
    if architecture != "aarch64" or not importlib.util.find_spec("unicorn"):
        return ()
    return (sys.executable, "-I", str(UNICORN_SCRIPT), "--cpu", core)
