"""The cores that are compared on, and running a program on an emulated one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from blocks import Counts, hottest, instructions, per_run, read
from cycles import cycles
from symbols import Symbols

from planish.backends.target import Target

HERE = Path(__file__).parent
COVERED = 0.998  # of the instructions: the rest is in thousands of blocks that run a few times
RUNS = 2


@dataclass(frozen=True)
class Core:
    """A core of a board.

    target: the row of `planish targets` that code is compiled for; emulated: QEMU's -cpu; model: LLVM's -mcpu for
    llvm-mca; part: the number by which /proc/cpuinfo names it; features: those that it lists; machine: `aarch64` or
    `arm` (32 bits).
    """

    name: str
    target: str
    emulated: str
    model: str
    part: str
    features: str
    machine: str = "aarch64"

    @property
    def row(self) -> Target:
        """What code is compiled for. On 32-bit ARM for one core: bodies of parallel loops could not be told apart."""
        row = Target.get(self.target)
        return row if self.machine == "aarch64" else replace(row, cores=1)

    @property
    def has_half(self) -> bool:
        """Whether it computes in float16."""
        return "asimdhp" in self.features.split()

    @property
    def cpuinfo(self) -> str:
        """/proc/cpuinfo of a board with four of them. Libraries choose kernels by it."""
        lines = (
            "processor\t: {0}\nBogoMIPS\t: 108.00\nFeatures\t: {1}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            "CPU variant\t: 0x0\nCPU part\t: {2}\nCPU revision\t: 3\n\n"
        )
        return "".join(lines.format(number, self.features, self.part) for number in range(4))


BASE = "fp asimd evtstrm crc32 cpuid"
CORES = {
    # Raspberry Pi 4.
    "a72": Core("a72", "raspberry-pi-4", "cortex-a72", "cortex-a72", "0xd08", BASE),
    # Raspberry Pi 5. LLVM 19 has no model of the Cortex-A76; the Neoverse N1 is the same core for servers.
    "a76": Core(
        "a76", "raspberry-pi-5", "cortex-a76", "neoverse-n1", "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
    # Raspberry Pi 2. LLVM has no model of the Cortex-A7; that of the A57, which is wider, takes the same instructions.
    "a7": Core(
        "a7", "raspberry-pi-2", "cortex-a7", "cortex-a57", "0xc07",
        "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm", "arm",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Of one run: instructions executed, model cycles, and the cycles of each function."""

    instructions: float
    cycles: float
    by_function: dict[str, float]


def qemu(machine: str = "aarch64") -> str:
    """QEMU's user mode with plugins. Raises FileNotFoundError with what to install."""
    path = shutil.which(f"qemu-{machine}")
    if not path:
        what = f"qemu-{machine} is not installed"
        raise FileNotFoundError(f"{what}; apt install qemu-user (the static one has no plugins)")
    return path


@cache
def plugin(room: Path, machine: str) -> Path:
    """The plugin, compiled for the QEMU that is here."""
    shown = subprocess.run([qemu(machine), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"(\d+)\.(\d+)", shown)
    newer = bool(version) and (int(version[1]), int(version[2])) >= (9, 1)
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise FileNotFoundError("there is no C compiler; apt install gcc")
    library = room / "block_counter.so"
    options = ["-O2", "-shared", "-fPIC", f"-DPLUGIN_API={3 if newer else 1}", "-o", str(library)]
    subprocess.run([compiler, *options, str(HERE / "block_counter.c")], check=True)
    return library


def count(core: Core, command: Sequence[str], room: Path, options: Sequence[str] = ()) -> Counts:
    """Run a program on the emulated core and count its blocks. options: further ones of QEMU."""
    out = room / "blocks.txt"
    out.unlink(missing_ok=True)
    counter = plugin(room, core.machine)
    emulator = [qemu(core.machine), "-cpu", core.emulated, "-plugin", f"{counter},out={out}", *options]
    done = subprocess.run(
        [*emulator, *command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode or not out.exists():
        raise RuntimeError(f"{command[0]} failed on the emulated {core.name}:\n{(done.stdout + done.stderr)[-3000:]}")
    with out.open() as lines:
        return read(lines)


def cost(core: Core, one: Counts, many: Counts, symbols: Symbols | None = None) -> Cost:
    """The cost of one run, from a program that made one and a program that made `RUNS` of them."""
    each = per_run(many, one, RUNS)
    hot = hottest(each, COVERED)
    by_function: dict[str, float] = {}
    for (block, times), taken in zip(hot.items(), cycles(list(hot), core.model, core.machine), strict=True):
        name = symbols.at(block.address) if symbols else "?"
        by_function[name] = by_function.get(name, 0.0) + times * taken
    return Cost(instructions(each), sum(by_function.values()), by_function)
