"""Target: a row of facts about a machine. Rows live in boards.toml; `local` is read off this machine."""

import difflib
import os
import platform
import tomllib
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..ir.errors import UsageError
from . import matrix_permission
from .tiles import NO_TILES, Tiles

_ROWS = Path(__file__).with_name("boards.toml")

# Instruction-set levels that `local` can be, best first: the row that a processor with these features gets.
_LOCAL_LEVELS = {
    "x86_64": ("x86-64-v4-amx", "x86-64-v4-vnni", "x86-64-v4", "x86-64-v3-vnni", "x86-64-v3"),
    "aarch64": ("graviton3", "raspberry-pi-5", "aarch64"),
}


@dataclass(frozen=True)
class Target:
    """What a machine is, for code generation and for refusing to run on another one.

    kind           "cpu" or "cuda"
    triple         e.g. "aarch64-linux-gnu"
    cpu            LLVM's name of the core; `llvm_features` are added to what it implies
    features       features of /proc/cpuinfo that code for this target needs
    lanes          fp32 lanes of a vector register; registers: their number
    cores          cores that the default thread count assumes
    l1_kib, l2_kib cache per core, KiB
    emulator_cpu   QEMU's -cpu, empty where no emulated core fits
    cuda_arch      e.g. "sm_80", empty for CPUs
    code           "c" (a program without a runtime) or "tvm" (a module for the TVM runtime)
    tiles          register tiles that were measured there
    """

    name: str
    kind: str
    triple: str
    cpu: str
    about: str = ""
    features: tuple[str, ...] = ()
    llvm_features: tuple[str, ...] = ()
    lanes: int = 4
    registers: int = 32
    cores: int = 1
    l1_kib: int = 32
    l2_kib: int = 512
    emulator_cpu: str = ""
    cuda_arch: str = ""
    code: str = "c"
    tiles: Tiles = NO_TILES

    def facts(self) -> dict[str, Any]:
        """The row as plain values, without what was measured: what a bundle says of the machine that it is for."""
        return {name: value for name, value in asdict(self).items() if name != "tiles"}

    @property
    def machine(self) -> str:
        """`x86_64`, `aarch64` or `arm` (32 bits)."""
        return self.triple.split("-", 1)[0]

    @property
    def has_half(self) -> bool:
        """Whether it computes in float16 (a CPU's features say so)."""
        return "asimdhp" in self.features

    @staticmethod
    def get(name: "str | Target") -> "Target":
        """The row of this name. Raises UsageError, with the nearest name where one is close."""
        if isinstance(name, Target):
            return name
        if name == "local":
            return local()
        rows = _rows()
        if name not in rows:
            near = difflib.get_close_matches(name, ["local", *rows], n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known targets: local, {', '.join(rows)}"
            raise UsageError("target", f"unknown target '{name}'", hint)
        return rows[name]

    @staticmethod
    def names() -> list[str]:
        return ["local", *_rows()]

    def missing_features(self) -> list[str]:
        """Features that this target needs and the machine that runs this Python lacks."""
        return [feature for feature in self.features if feature not in cpu_features()]

    def runs_here(self) -> bool:
        return self.kind == "cpu" and self.machine == platform.machine() and not self.missing_features()


@cache
def local() -> Target:
    """This machine. Raises UsageError for a processor below AVX2 or NEON."""
    machine = platform.machine()
    for name in _LOCAL_LEVELS.get(machine, ()):
        row = _rows()[name]
        if not row.missing_features():
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            about = f"this machine: {row.about}"
            return replace(row, name="local", about=about, cores=cores, code="tvm", l1_kib=_cache_kib(1, row.l1_kib),
                           l2_kib=_cache_kib(2, row.l2_kib))  # fmt: skip
    levels = (
        " or ".join(", ".join(_rows()[n].features) for n in _LOCAL_LEVELS.get(machine, ())[-1:])
        or "x86-64 or 64-bit ARM"
    )
    raise UsageError("target", f"this {machine} processor has no kernels here", f"expected one with {levels}")


@cache
def cpu_features() -> frozenset[str]:
    """The features that Linux lists for this machine's processor (x86 `flags`, ARM `Features`).

    Those of Intel's matrix unit only if this process may use it: it is asked for here.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    listed = [line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))]
    features = frozenset(listed[0].split()) if listed else frozenset()
    matrix = frozenset(feature for feature in features if feature.startswith("amx_"))
    return features if not matrix or matrix_permission.is_granted() else features - matrix


@cache
def _rows() -> dict[str, Target]:
    with _ROWS.open("rb") as file:
        document = tomllib.load(file)
    return {name: _row(name, facts) for name, facts in document.items()}


def _row(name: str, facts: dict[str, Any]) -> Target:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return Target(name=name, **fields)


def _cache_kib(level: int, default: int) -> int:
    """The data cache of core 0 at this level, from sysfs."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            facts = {key: (index / key).read_text().strip() for key in ("level", "type", "size")}
        except OSError:
            continue
        if facts["level"] == str(level) and facts["type"] != "Instruction" and facts["size"].endswith("K"):
            return int(facts["size"][:-1])
    return default
