"""What asking for lines of memory ahead of their use brings, by layer: weights of the next panel, and lines of results.

    python benchmarks/prefetch.py [--rounds 200] [--json FILE]

Each pointwise and linear layer of `tile_shapes.py` is compiled with everything, without one of the two, and without
both. They take turns on one core, with weights that are not in its caches; the median over the rounds of the time over
that of the same round with everything counts. Layers whose code is the same in all forms are left out.
"""

import argparse
import json
from pathlib import Path
from statistics import geometric_mean
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table
from tile_shapes import SHAPES
from tiles import arithmetic_of

from planish.backends.target import Target
from planish.backends.tvm.arithmetic import Arithmetic
from planish.backends.tvm.kernels import FAMILIES, Dense, Pointwise
from planish.backends.tvm.kernels.microkernel import Ahead, Soon
from planish.backends.tvm.kernels.tile import Tile, candidates
from planish.backends.tvm.tile_times import TileTimes, ratios

FORMS: dict[str, tuple[type, ...]] = {
    "everything": (),
    "no results": (Soon,),
    "no weights": (Ahead,),
    "neither": (Soon, Ahead),
}


class Counted:
    """The real plan of a prefetch, and whether it ever gave one."""

    def __init__(self, kind: Any):
        self._plan, self.used = kind.plan, False

    def __call__(self, *args: Any, **options: Any) -> Any:
        found = self._plan(*args, **options)
        self.used |= found is not None
        return found


def build(spec: Any, arithmetic: Arithmetic, tile: Tile, target: Target, without: tuple[type, ...]) -> TileTimes:
    patches = [patch.object(kind, "plan", lambda *_args, **_options: None) for kind in without]
    for each in patches:
        each.start()
    try:
        return TileTimes(spec, arithmetic, [tile], target)
    finally:
        for each in patches:
            each.stop()


def measure(spec: Any, arithmetic: Arithmetic, target: Target, rounds: int) -> dict[str, float] | None:
    """Form -> its time over that with everything; None where the layer asks for nothing ahead."""
    tile = candidates(FAMILIES[type(spec)].tiling(spec, arithmetic), arithmetic)[0]
    soon, ahead = Counted(Soon), Counted(Ahead)
    with patch.object(Soon, "plan", soon), patch.object(Ahead, "plan", ahead):
        whole = TileTimes(spec, arithmetic, [tile], target)
    used = {kind for kind, plan in ((Soon, soon), (Ahead, ahead)) if plan.used}
    if not used:
        return None
    forms = {"everything": whole}
    forms |= {
        name: build(spec, arithmetic, tile, target, kinds) for name, kinds in FORMS.items() if kinds and used >= {*kinds}
    }
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds):
        names = list(forms)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name] += forms[name].taken(1)[tile]
    return ratios(taken)  # type: ignore[arg-type]  any key serves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    chosen, target = parser.parse_args(), Target.get("local")
    arithmetic = arithmetic_of("float", target)
    rows: dict[str, dict[str, float]] = {}
    shown = Table(title="time over that with both prefetches", title_justify="left")
    for heading in ("layer", *list(FORMS)[1:]):
        shown.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer, spec in SHAPES.items():
        if isinstance(spec, (Pointwise, Dense)) and (found := measure(spec, arithmetic, target, chosen.rounds)):
            rows[layer] = found
            shown.add_row(layer, *(f"{found[name]:.3f}" if name in found else "" for name in list(FORMS)[1:]))
    means = [[row[name] for row in rows.values() if name in row] for name in list(FORMS)[1:]]
    shown.add_row("geometric mean", *(f"{geometric_mean(column):.3f}" if column else "" for column in means))
    Console(width=120).print(shown)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
