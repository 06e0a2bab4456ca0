"""Which kernel an address of a program belongs to, the bodies of its parallel loops included."""

from __future__ import annotations

import bisect
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from cycles import tool

# A kernel hands the address of a loop's body, which has no name of its own, to the thread pool.
LOOP_BODY = re.compile(r"^([0-9a-f]+)\s+R_AARCH64_ADR_PREL_PG_HI21\s+\.text(?:\+0x([0-9a-f]+))?$", re.MULTILINE)


class Symbols:
    """Functions by address."""

    def __init__(self, starts: Mapping[int, str]) -> None:
        """starts: the name of each function by its first address."""
        self._starts = sorted(starts)
        self._names = [starts[start] for start in self._starts]

    def at(self, address: int) -> str:
        """The last function that starts at or below an address, `?` before the first."""
        place = bisect.bisect_right(self._starts, address)
        return self._names[place - 1] if place else "?"


def names(lines: Iterable[str]) -> dict[int, str]:
    """Names of code by address, from the lines of `nm`. Weak helpers, in sections of their own, are left out."""
    fields = (line.split() for line in lines)
    return {int(f[0], 16): f[2] for f in fields if len(f) == 3 and f[1] in "tT"}


def loop_bodies(kernels: Mapping[int, str], relocations: str) -> dict[int, str]:
    """Loop bodies of an object file by address, named after the kernels that start them.

    kernels: those of the object; relocations: as `objdump -r` prints them.
    """
    owner = Symbols(kernels)
    found = LOOP_BODY.findall(relocations)
    return {int(body or "0", 16): owner.at(int(place, 16)) for place, body in found}


def of_program(program: Path, kernels: Path) -> Symbols:
    """The functions of a linked program, and in it those of the object file `kernels`."""
    whole, part = (names(_lines("llvm-nm", path)) for path in (program, kernels))
    bodies = loop_bodies(part, "\n".join(_lines("llvm-objdump", "-r", kernels)))
    addresses = {name: address for address, name in whole.items()}
    moved = {addresses[name] - address for address, name in part.items() if name in bodies.values()}
    if len(moved) > 1:
        raise ValueError(f"{kernels.name} was linked in {len(moved)} pieces; expected one section of kernels")
    return Symbols(whole | {address + shift: name for shift in moved for address, name in bodies.items()})


def _lines(name: str, *arguments: str | Path) -> list[str]:
    command = [tool(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
