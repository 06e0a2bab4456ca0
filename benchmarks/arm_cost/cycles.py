"""Cycles of blocks on a core, as llvm-mca models it: all loads hit L1, every branch is predicted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from blocks import Block

LLVM = "19"  # the version whose models the published figures come from
ITERATIONS = 100
BETWEEN_TEXT = re.compile(r"hint\s+#(127|0x7f)$")


@dataclass(frozen=True)
class Instructions:
    """What LLVM calls an instruction set, and an instruction of it that no compiler emits (`hint #127`).

    That one stands between blocks, so that one process disassembles all of them.
    """

    triple: str
    features: str
    between: bytes


BY_MACHINE = {
    "aarch64": Instructions("aarch64-linux-gnu", "+dotprod,+i8mm,+fullfp16", bytes.fromhex("ff2f03d5")),
    "arm": Instructions("armv7-linux-gnueabihf", "+neon,+vfp4,+hwdiv-arm", bytes.fromhex("7ff020e3")),
}


def tool(name: str) -> str:
    """The path of an LLVM tool of this version. Raises FileNotFoundError with what to install."""
    path = shutil.which(f"{name}-{LLVM}")
    if not path:
        raise FileNotFoundError(f"{name}-{LLVM} is not installed; apt install llvm-{LLVM}")
    return path


def disassemble(blocks: Sequence[Block], known: Instructions) -> list[list[str]]:
    """The instructions of each block as text."""
    code = "\n".join(" ".join(f"0x{byte:02x}" for byte in block.code + known.between) for block in blocks)
    command = [tool("llvm-mc"), "-disassemble", f"-triple={known.triple}", f"-mattr={known.features}"]
    text = subprocess.run(command, input=code, capture_output=True, text=True, check=True).stdout
    return split(text.splitlines())


def split(lines: Sequence[str]) -> list[list[str]]:
    """Disassembled lines as lists, one for each instruction that stands between blocks."""
    parts: list[list[str]] = [[]]
    for line in (line.strip() for line in lines):
        if BETWEEN_TEXT.match(line):
            parts.append([])
        elif line and not line.startswith("."):
            parts[-1].append(line)
    return parts[:-1]


def cycles(blocks: Sequence[Block], core: str, machine: str = "aarch64") -> list[float]:
    """Cycles of one execution of each block, repeated without end, on LLVM's model of `core`.

    machine: whose instructions they are, a key of `BY_MACHINE`.
    """
    known = BY_MACHINE[machine]
    regions = [
        [f"# LLVM-MCA-BEGIN {number}", *text, f"# LLVM-MCA-END {number}"]
        for number, text in enumerate(disassemble(blocks, known))
    ]
    command = [
        tool("llvm-mca"), f"-mtriple={known.triple}", f"-mcpu={core}", f"-mattr={known.features}", "-json",
        f"-iterations={ITERATIONS}", "-instruction-info=0", "-resource-pressure=0",
        "-skip-unsupported-instructions=any",
    ]  # fmt: skip
    source = "\n".join(line for region in regions for line in region) + "\n"
    report = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return totals(report, len(blocks))


def totals(report: str, count: int) -> list[float]:
    """Cycles by region of llvm-mca's JSON; a region that it left out (no instruction that it knows) costs nothing."""
    found = {
        int(region["Name"]): region["SummaryView"]["TotalCycles"] / region["SummaryView"]["Iterations"]
        for region in json.loads(report)["CodeRegions"]
    }
    return [found.get(number, 0.0) for number in range(count)]
