"""What `block_counter.c` writes: how often each translated block of a program ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

INSTRUCTION_BYTES = 4  # of AArch64, and of 32-bit ARM outside of Thumb, in which no kernel is compiled


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other. code: their bytes; the address tells one copy from another."""

    address: int
    code: bytes

    @property
    def instructions(self) -> int:
        return len(self.code) // INSTRUCTION_BYTES


Counts = Mapping[Block, float]


def read(lines: Iterable[str]) -> dict[Block, float]:
    """Executions by block. QEMU may translate a block more than once, in a line each: they are added up.

    Raises ValueError for a line that is none of the plugin's, with its number.
    """
    counts: dict[Block, float] = {}
    for number, line in enumerate(lines, 1):
        try:
            address, executions, code = line.split()
            block, times = Block(int(address, 16), bytes.fromhex(code)), int(executions)
        except ValueError:
            what = f"line {number} of the block counts is '{line.strip()[:60]}'"
            raise ValueError(f"{what}; expected address, executions and code; the program ended early") from None
        counts[block] = counts.get(block, 0) + times
    return counts


def per_run(many: Counts, one: Counts, runs: int) -> dict[Block, float]:
    """What one run costs, from a program that made `runs` of them and one that made a single one: without its start.

    Blocks of the start that ran a few times more in the shorter program count as nothing.
    """
    each = {block: (times - one.get(block, 0)) / (runs - 1) for block, times in many.items()}
    return {block: times for block, times in each.items() if times > 0}


def instructions(counts: Counts) -> float:
    return sum(block.instructions * times for block, times in counts.items())


def hottest(counts: Counts, share: float) -> dict[Block, float]:
    """The fewest blocks that hold this share of all instructions."""
    wanted, kept = share * instructions(counts), {}
    for block, times in sorted(counts.items(), key=lambda item: (-item[0].instructions * item[1], item[0].address)):
        if wanted <= 0:
            break
        kept[block] = times
        wanted -= block.instructions * times
    return kept
