"""benchmarks/arm_cost: what it reads, and a program whose instructions can be counted by hand."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from planish.backends.linker import find_linker
from planish.ir.errors import BuildError

FOLDER = Path(__file__).parents[2] / "benchmarks/arm_cost"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


LINES = ["400000 10 1f2003d51f2003d5", "400008 1 1f2003d5", "400000 5 1f2003d51f2003d5"]


def test_blocks_that_were_translated_twice_are_added_up() -> None:
    import blocks

    counts = blocks.read(LINES)
    assert {block.address: times for block, times in counts.items()} == {0x400000: 15, 0x400008: 1}
    assert blocks.instructions(counts) == 15 * 2 + 1


def test_a_file_that_was_cut_off_is_refused_with_its_line() -> None:
    import blocks

    with pytest.raises(ValueError, match="line 2 of the block counts is '400008'"):
        blocks.read([LINES[0], "400008"])


def test_one_run_is_what_further_runs_add() -> None:
    import blocks

    start, loop = blocks.Block(0, bytes(4)), blocks.Block(4, bytes(8))
    assert blocks.per_run({start: 7, loop: 30}, {start: 7, loop: 10}, runs=3) == {loop: 10}


def test_the_hottest_blocks_are_those_with_most_instructions_executed() -> None:
    import blocks

    short, long, rare = (blocks.Block(at, bytes(size)) for at, size in ((0, 4), (64, 40), (128, 4)))
    counts = {rare: 1, short: 50, long: 50}
    assert list(blocks.hottest(counts, 0.9)) == [long]
    assert list(blocks.hottest(counts, 0.95)) == [long, short]
    assert list(blocks.hottest(counts, 1.0)) == [long, short, rare]


def test_loop_bodies_belong_to_the_kernel_that_starts_them() -> None:
    import symbols

    kernels = symbols.names(["0000 T kernel_a", "0040 T kernel_b", "0000 W helper", "     U memcpy", "0000 V slot"])
    relocations = (
        "0000000000000010 R_AARCH64_ADR_GOT_PAGE   slot\n"
        "000000000000001c R_AARCH64_ADR_PREL_PG_HI21 .text+0x540\n"
        "0000000000000020 R_AARCH64_ADD_ABS_LO12_NC .text+0x540\n"
        "000000000000005c R_AARCH64_ADR_PREL_PG_HI21 .text+0xa50\n"
    )
    bodies = symbols.loop_bodies(kernels, relocations)
    assert bodies == {0x540: "kernel_a", 0xA50: "kernel_b"}
    found = symbols.Symbols(kernels | bodies)
    assert [found.at(address) for address in (0, 0x3C, 0x40, 0x53C, 0xA4C, 0xFFFF)] == [
        "kernel_a", "kernel_a", "kernel_b", "kernel_b", "kernel_a", "kernel_b",
    ]  # fmt: skip
    assert symbols.Symbols({8: "f"}).at(4) == "?"


def test_disassembly_is_split_where_the_marker_stands() -> None:
    import cycles

    text = ["\t.text", "\tfmla\tv0.4s, v1.4s, v2.4s", "\thint\t#127", "\tnop", "\tret", "\thint\t#127"]
    assert cycles.split(text) == [["fmla\tv0.4s, v1.4s, v2.4s"], ["nop", "ret"]]


def test_cycles_are_per_iteration_and_a_region_left_out_costs_nothing() -> None:
    import cycles

    report = '{"CodeRegions": [{"Name": "1", "SummaryView": {"Iterations": 100, "TotalCycles": 250}}]}'
    assert cycles.totals(report, 3) == [0.0, 2.5, 0.0]


def test_every_published_row_has_a_figure_in_every_column() -> None:
    import published

    for row in published.ROWS.values():
        assert len(row.split()) == len(published.COLUMNS)
    assert published.figures("resnet18", "a76", "fp32")["ncnn"] == (240, 107)
    assert published.figures("resnet50", "a76", "fp32") == {}


PROGRAM = """
.globl _start
_start: mov x1, #1000
1:      subs x1, x1, #1
        b.ne 1b
        mov x8, #93
        mov x0, #0
        svc #0
"""


PROGRAM_32 = """
.globl _start
_start: mov r1, #1000
1:      subs r1, r1, #1
        bne 1b
        mov r7, #1
        mov r0, #0
        svc #0
"""


@pytest.mark.parametrize(
    ("core", "triple", "program"),
    [("a72", "aarch64-linux-gnu", PROGRAM), ("a7", "arm-linux-gnueabihf", PROGRAM_32)],
)
def test_instructions_of_a_program_are_counted_exactly(core: str, triple: str, program: str, tmp_path: Path) -> None:
    import blocks
    import cores

    emulator = f"qemu-{cores.CORES[core].machine}"
    if not shutil.which(emulator):
        pytest.skip(f"{emulator} is not installed")
    try:
        linker = find_linker(triple)
    except BuildError as e:
        pytest.skip(str(e))
    (tmp_path / "loop.S").write_text(program)
    options = ["-nostdlib", "-static", "loop.S", "-o", "loop"]
    subprocess.run([*linker.command, *options], cwd=tmp_path, check=True, capture_output=True)
    counts = cores.count(cores.CORES[core], [str(tmp_path / "loop")], tmp_path)
    assert blocks.instructions(counts) == 1 + 2 * 1000 + 3
    failing = tmp_path / "missing"
    with pytest.raises(RuntimeError, match=f"missing failed on the emulated {core}"):
        cores.count(cores.CORES[core], [str(failing)], tmp_path)


def test_both_instruction_sets_are_disassembled() -> None:
    import cycles
    from blocks import Block

    if not shutil.which(f"llvm-mc-{cycles.LLVM}"):
        pytest.skip(f"llvm-{cycles.LLVM} is not installed")
    by_lane, spread = Block(0, bytes.fromhex("2010824f")), Block(4, bytes.fromhex("500c46f2"))
    assert cycles.disassemble([by_lane] * 2, cycles.BY_MACHINE["aarch64"]) == [["fmla\tv0.4s, v1.4s, v2.s[0]"]] * 2
    assert cycles.disassemble([spread], cycles.BY_MACHINE["arm"]) == [["vfma.f32\tq8, q3, q0"]]
