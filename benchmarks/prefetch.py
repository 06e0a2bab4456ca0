"""What asking for memory ahead of its use brings, by layer: weights of the next panel, lines of results, the next tile.

    python benchmarks/prefetch.py [--precision float|int8] [--rounds 200] [--json FILE]

Each layer of `tile_shapes.py` that asks is compiled as it is, without one of the three, and without any. They take
turns on one core, with weights that are not in its caches; the median over the rounds of the time over that of the
same round as it is counts.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import geometric_mean
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table
from tile_shapes import SHAPES, in_integers

from planish.backends.target import Target
from planish.backends.tvm.arithmetic import Arithmetic, fp32, integers
from planish.backends.tvm.kernels import FAMILIES, Dense, DirectConv, Pointwise
from planish.backends.tvm.kernels.matrix_tiles import Tiles
from planish.backends.tvm.kernels.prefetches import Ahead, Following, Soon
from planish.backends.tvm.kernels.tile import candidates
from planish.backends.tvm.tile_times import TileTimes, ratios

# Where kernels decide what to ask for.
RESULTS, WEIGHTS, MATRIX_WEIGHTS = (Soon, "plan"), (Ahead, "plan"), (Tiles, "ahead")
INPUT = (Following, "plan")
FORMS: dict[str, set[tuple[type, str]]] = {
    "no results": {RESULTS},
    "no weights": {WEIGHTS, MATRIX_WEIGHTS},
    "no input": {INPUT},
    "none": {RESULTS, WEIGHTS, MATRIX_WEIGHTS, INPUT},
}


@contextmanager
def nothing_from(places: set[tuple[type, str]]) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name in places:
            stack.enter_context(patch.object(owner, name, lambda *_args, **_options: None))
        yield


@contextmanager
def noted(used: set[tuple[type, str]]) -> Iterator[None]:
    """Puts into `used` the places that gave something to ask for."""

    def watched(place: tuple[type, str]) -> Any:
        decide = getattr(*place)

        def call(*args: Any, **options: Any) -> Any:
            found = decide(*args, **options)
            used.update({place} if found is not None else ())
            return found

        return call

    with ExitStack() as stack:
        for place in (RESULTS, WEIGHTS, MATRIX_WEIGHTS, INPUT):
            stack.enter_context(patch.object(*place, watched(place)))
        yield


def measure(spec: Any, arithmetic: Arithmetic, target: Target, rounds: int) -> dict[str, float] | None:
    """Form -> its time over that of the layer as it is; None where the layer asks for nothing ahead."""
    tile = candidates(FAMILIES[type(spec)].tiling(spec, arithmetic), arithmetic)[0]
    used: set[tuple[type, str]] = set()
    with noted(used):
        forms = {"as it is": TileTimes(spec, arithmetic, [tile], target)}
    if not used:
        return None
    for name, places in FORMS.items():
        if places & used and (name != "none" or len(used) > 1):
            with nothing_from(places):
                forms[name] = TileTimes(spec, arithmetic, [tile], target)
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds):
        names = list(forms)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name] += forms[name].taken(1)[tile]
    return ratios(taken)  # type: ignore[arg-type]  any key serves


def best_arithmetic(precision: str, target: Target) -> Arithmetic:
    """On one core."""
    sizes = target.lanes, target.registers, 1, target.l2_kib * 512
    found = fp32(target.triple, *sizes) if precision == "float" else integers(target.features, *sizes)
    if found is None:
        raise SystemExit("prefetch: this machine has no instruction for products of bytes that has kernels here")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float", choices=["float", "int8"])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    chosen, target = parser.parse_args(), Target.get("local")
    arithmetic = best_arithmetic(chosen.precision, target)
    rows: dict[str, dict[str, float]] = {}
    shown = Table(title="time over that with prefetches", title_justify="left")
    for heading in ("layer", *FORMS):
        shown.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer, spec in SHAPES.items():
        spec = in_integers(spec) if chosen.precision == "int8" else spec
        if isinstance(spec, (Pointwise, Dense, DirectConv)) and (
            found := measure(spec, arithmetic, target, chosen.rounds)
        ):
            rows[layer] = found
            shown.add_row(layer, *(f"{found[name]:.3f}" if name in found else "" for name in FORMS))
    means = [[row[name] for row in rows.values() if name in row] for name in FORMS]
    shown.add_row("geometric mean", *(f"{geometric_mean(column):.3f}" if column else "" for column in means))
    Console(width=120).print(shown)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
