"""Register tiles of a board's layers by model cycles: what `tune=N` does on a device, without the board.

    python benchmarks/arm_cost/tiles.py --core a76 [--model NAME ...] [--precision int8 ...] [--tries 6] [--write]

Every layer of a program is given the first of its tiles, then the second, and so on: N inferences cost N tiles of all
layers. Layers of the same shape count together, over all models. Only the rule's few best tiles take part, since the
rule knows what it costs to read weights from the second-level cache, and model cycles do not; among them the one of the
fewest cycles wins, if it takes less than 0.97 of the rule's. --write puts the winners into the file that comes with
Planish for the core, in place of what it held for these layers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))  # the models of all benchmarks

import torch
from cores import CORES, Core
from models import MODELS
from ours import RECIPES, inference
from rich.console import Console
from rich.table import Table

import planish
from planish.backends.target import Target
from planish.backends.tile_file import shipped_path, shipped_tiles, write_tiles
from planish.backends.tiles import NO_TILES, Tiles
from planish.backends.tune import choice
from planish.backends.tvm.kernels import tiling
from planish.backends.tvm.kernels.tile import Tile, candidates, layer_name
from planish.backends.tvm.relax import to_relax
from planish.ir.graph import Graph
from planish.thinned import Thinned

MILLION = 1e6
WORTH = 10_000  # cycles that a tile must save: less is what other kernels gain or lose when code moves
NAMED = ("efficientnet-lite0", "mobilenet-v2", "resnet18")
Layer = tuple[str, str]  # arithmetic, layer


@dataclass
class Search:
    """The tiles to try of each layer, the rule's first, and the cycles that each took so far."""

    tries: int
    tiles: dict[Layer, tuple[Tile, ...]] = field(default_factory=dict)
    cycles: dict[Layer, dict[Tile, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))

    def add(self, graph: Graph, core: Core, target: Target) -> None:
        """Count one inference of a graph for each try."""
        layers = self._layers(graph, target)
        for turn in range(self.tries):
            tiles = {layer: self._turn(layer, turn) for layer in layers.values()}
            given = NO_TILES
            for layer, tile in tiles.items():
                given = given.with_tile(*layer, tile.pixels, tile.vectors)
            compiled = planish.compile(graph, recipe="", target=replace(target, tiles=given), cache=False)
            with tempfile.TemporaryDirectory(prefix="planish-tiles-") as room:
                kernels = inference(compiled, core, Path(room)).kernels
            for layer in {layers[kernel.symbol] for kernel in kernels if kernel.symbol in layers}:
                if turn < len(self.tiles[layer]):
                    own = sum(kernel.cycles for kernel in kernels if layers.get(kernel.symbol) == layer)
                    self.cycles[layer][tiles[layer]] += own

    def changed(self) -> dict[Layer, Tile]:
        """The layers of which a tile is clearly better than the rule's, with that tile."""
        found = {}
        for layer, taken in self.cycles.items():
            rule = self.tiles[layer][0]
            best = choice({tile: taken[tile] / taken[rule] for tile in self.tiles[layer]})
            if taken[rule] - taken[best] >= WORTH:
                found[layer] = best
        return found

    def _turn(self, layer: Layer, turn: int) -> Tile:
        tiles = self.tiles[layer]
        return tiles[min(turn, len(tiles) - 1)]

    def _layers(self, graph: Graph, target: Target) -> dict[str, Layer]:
        """The layer of every kernel that has a register tile."""
        found = {}
        for symbol, (spec, arithmetic) in to_relax(graph, replace(target, tiles=NO_TILES)).specs.items():
            covered = tiling(spec, arithmetic)
            if covered is not None:
                layer = found[symbol] = arithmetic.name, layer_name(spec)
                self.tiles[layer] = candidates(covered, arithmetic)[: self.tries]
        return found


def passed(model: torch.nn.Module, x: torch.Tensor, precision: str, target: Target) -> Graph:
    """A model behind the passes of a precision, for batches as large as the example."""
    context = planish.Context(data=[x], target=target, seed=0)
    with torch.no_grad():
        graph = planish.Pipeline.parse(RECIPES[precision]).run(planish.capture(model, (x,)), context).graph
    return Thinned.of(graph, len(x)).fixed


def table(search: Search, core: Core) -> Table:
    changed = search.changed()
    before = sum(taken[search.tiles[layer][0]] for layer, taken in search.cycles.items())
    saved = sum(search.cycles[layer][search.tiles[layer][0]] - search.cycles[layer][tile]
                for layer, tile in changed.items())  # fmt: skip
    title = (
        f"{core.emulated}: {len(changed)} of {len(search.cycles)} layers change, "
        f"{before / MILLION:.1f} -> {(before - saved) / MILLION:.1f} million cycles"
    )
    shown = Table(title=title, title_justify="left")
    for heading in ("arithmetic", "layer", "rule", "best", "million cycles", "share of the rule's"):
        shown.add_column(heading, justify="left" if heading in ("arithmetic", "layer") else "right")
    for layer, tile in changed.items():
        rule = search.tiles[layer][0]
        taken = search.cycles[layer]
        shown.add_row(
            *layer, _text(rule), _text(tile), f"{taken[rule] / MILLION:.2f}", f"{taken[tile] / taken[rule]:.3f}"
        )
    return shown


def _text(tile: Tile) -> str:
    return f"{tile.pixels}x{tile.vectors}"


def write(search: Search, target: Target) -> None:
    """The core's file, with what this search found for its layers."""
    changed = search.changed()
    kept = [row for row in shipped_tiles(target).rows if row[:2] not in search.cycles]
    rows = [*kept, *((*layer, tile.pixels, tile.vectors) for layer, tile in changed.items())]
    write_tiles(shipped_path(target), Tiles(tuple(sorted(rows))), target, target.cpu)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", choices=CORES, required=True)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(NAMED))
    parser.add_argument("--precision", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--tries", type=int, default=6, metavar="N", help="tiles for each layer")
    parser.add_argument("--write", action="store_true", help="into the file that comes with Planish for this core")
    chosen, console = parser.parse_args(), Console(width=180)
    torch.set_num_threads(1)
    core, search = CORES[chosen.core], Search(chosen.tries)
    target = replace(core.row, cores=1)
    for precision in chosen.precision:
        if precision == "fp16" and not core.has_half:
            continue
        for name in chosen.model:
            model, x = MODELS[name]()
            search.add(passed(model, x, precision, target), core, target)
    console.print(table(search, core))
    if chosen.write:
        write(search, core.row)


if __name__ == "__main__":
    main()
