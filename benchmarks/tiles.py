"""The register tile that the rule chooses beside the best of all that fit, measured on thirty layers.

    python benchmarks/tiles.py [--shapes PART ...] [--limit N] [--precision float|int8] [--rounds 40] [--json FILE]

Every tile of a layer is compiled into one library, and all take turns on one core with weights that are not in its
caches. Times are compared within a round, and the median of the rounds counts, so that neither the clock's moods nor
other work do much harm; a second look with four times the rounds decides between the rule's tile and those within 15 %
of the best. --shapes keeps layers whose name contains one of the words; --json adds the rows to those of a file, so
that a long run can be made in pieces.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tile_shapes import SHAPES, in_integers

from planish.backends.target import Target
from planish.backends.tvm.arithmetic import Arithmetic, Vnni, fp32, integers
from planish.backends.tvm.kernels import FAMILIES
from planish.backends.tvm.kernels.tile import Tile, candidates
from planish.backends.tvm.tile_times import TileTimes, ratios

CLOSE = 1.10  # the rule is held to this times the best tile's time
AGAIN = 1.15  # tiles within this of the best are measured a second time


@dataclass(frozen=True)
class Row:
    """One layer.

    rule, best  (pixels, vectors) of the rule's tile and of the fastest
    rule_us     microseconds of the rule's tile, the least
    ratio       time of the rule's tile over the fastest one's
    times       of every tile ("7x3"), over the rule's
    """

    layer: str
    arithmetic: str
    rule: tuple[int, int]
    best: tuple[int, int]
    rule_us: float
    ratio: float
    times: dict[str, float]


def measure(layer: str, spec: Any, arithmetic: Arithmetic, target: Target, rounds: int) -> Row:
    tiles = candidates(FAMILIES[type(spec)].tiling(spec, arithmetic), arithmetic)
    rule = tiles[0]
    times = TileTimes(spec, arithmetic, tiles, target).ratios(rounds)
    close = [tile for tile in tiles if tile == rule or times[tile] <= AGAIN * min(times.values())]
    taken = TileTimes(spec, arithmetic, close, target).taken(4 * rounds)
    times |= ratios(taken)
    best = min(close, key=times.__getitem__)
    return Row(layer, arithmetic.name, _pair(rule), _pair(best), 1e6 * min(taken[rule]), 1 / times[best],
               {"x".join(map(str, _pair(tile))): share for tile, share in times.items()})  # fmt: skip


def _pair(tile: Tile) -> tuple[int, int]:
    return tile.pixels, tile.vectors


def arithmetic_of(precision: str, target: Target) -> Arithmetic:
    """On one core. Where there is a matrix unit, which has no such tiles, vectors multiply bytes all the same."""
    sizes = target.lanes, target.registers, 1, target.l2_kib * 512
    if precision == "float":
        return fp32(target.triple, *sizes)
    found = integers(target.features, *sizes)
    if found is None:
        raise SystemExit("tiles: this machine has no instruction for products of bytes that has kernels here")
    return Vnni(*sizes) if isinstance(found, Vnni) else found


def table(rows: list[Row]) -> Table:
    shown = Table(title="the rule's tile and the best, pixels x vectors", title_justify="left")
    for heading in ("layer", "tiles", "rule", "best", "rule, us", "rule / best"):
        shown.add_column(heading, justify="left" if heading == "layer" else "right")
    for row in rows:
        pairs = ("x".join(map(str, pair)) for pair in (row.rule, row.best))
        shown.add_row(
            f"{row.layer}, {row.arithmetic}", str(len(row.times)), *pairs, f"{row.rule_us:.1f}", f"{row.ratio:.3f}"
        )
    return shown


def summary(rows: list[Row]) -> str:
    close, worst = [row for row in rows if row.ratio <= CLOSE], max(rows, key=lambda row: row.ratio)
    mean = sum(row.ratio for row in rows) / len(rows)
    text = f"{len(close)} of {len(rows)} layers within {CLOSE - 1:.0%} of the best tile"
    return f"{text}, mean ratio {mean:.3f}, worst {worst.ratio:.3f} ({worst.layer})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", metavar="PART", help="layers whose name contains one of these")
    parser.add_argument("--limit", type=int, help="the first N of them")
    parser.add_argument("--precision", default="float", choices=["float", "int8"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    chosen, console, target = parser.parse_args(), Console(width=120), Target.get("local")
    arithmetic = arithmetic_of(chosen.precision, target)
    wanted = {name: spec for name, spec in SHAPES.items() if any(part in name for part in chosen.shapes or [""])}
    if chosen.precision == "int8":
        wanted = {name: found for name, spec in wanted.items() if (found := in_integers(spec)) is not None}
    rows: list[Row] = []
    if chosen.json and chosen.json.exists():
        rows = [Row(**row) for row in json.loads(chosen.json.read_text())]
    done = {(row.layer, row.arithmetic) for row in rows}
    left = [name for name in wanted if (name, arithmetic.name) not in done][: chosen.limit]
    for name in left:
        rows.append(measure(name, wanted[name], arithmetic, target, chosen.rounds))
        console.log(f"{name}: {rows[-1].ratio:.3f}")
        if chosen.json:
            chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    console.print(table(rows))
    console.print(summary(rows))


if __name__ == "__main__":
    main()
