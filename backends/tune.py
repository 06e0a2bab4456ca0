"""Choosing register tiles by measurement: for each layer the few best of the rule, timed on this machine."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..ir.errors import BuildError
from ..ir.graph import Graph
from .hybrid import plan_regions
from .target import Target
from .tile_file import add_tile, read_tiles
from .tiles import NO_TILES, Tiles
from .tvm.arithmetic import Arithmetic
from .tvm.kernels import tiling
from .tvm.kernels.tile import Tile, candidates, layer_name
from .tvm.relax import RelaxModel, to_relax
from .tvm.tile_times import TileTimes

ROUNDS = 60
# The rule's tile stays unless another one takes less than this share of its time: below that it is noise.
CLEARLY = 0.97


def tune(
    graph: Graph,
    target: Target,
    count: int,
    path: Path,
    progress: Callable[[Iterable, str], Iterable],
) -> Tiles:
    """Measure `count` tiles of every layer of a graph that the file does not know yet, and keep the fastest of each.

    Layers whose kernel has no register tile, or is described by more than its shape, keep what the rule gives. Each
    choice is in the file at once. Gives what the file holds then.
    """
    known = read_tiles(path, target) if path.exists() else NO_TILES
    left = {key: layer for key, layer in _layers(graph, target).items() if known.get(*key) is None}
    for (arithmetic, layer), (spec, how) in progress(list(left.items()), "tune"):
        known = add_tile(path, target, arithmetic, layer, *fastest(spec, how, count, target))
    return known


def fastest(spec: Any, arithmetic: Arithmetic, count: int, target: Target) -> tuple[int, int]:
    """(pixels, vectors) of the fastest of the rule's `count` best tiles for one layer."""
    tiles = candidates(tiling(spec, arithmetic), replace(arithmetic, cores=1, tiles=NO_TILES))[:count]
    best = tiles[0] if len(tiles) == 1 else choice(TileTimes(spec, arithmetic, tiles, target).ratios(ROUNDS))
    return best.pixels, best.vectors


def choice(ratios: dict[Tile, float]) -> Tile:
    """The fastest tile, if it is clearly faster than the first one, which is the rule's and has ratio 1."""
    rule, best = next(iter(ratios)), min(ratios, key=ratios.__getitem__)
    return best if ratios[best] < CLEARLY else rule


def _layers(graph: Graph, target: Target) -> dict[tuple[str, str], tuple[Any, Arithmetic]]:
    """(arithmetic, layer) -> its kernel, for every kernel of a graph that has a register tile."""
    bare = replace(target, tiles=NO_TILES)
    try:
        models = [to_relax(graph, bare)]
    except BuildError:  # a part stays in PyTorch
        models = [model for model in plan_regions(graph, bare).models.values() if isinstance(model, RelaxModel)]
    kernels = [pair for model in models for pair in model.specs.values()]
    return {(how.name, layer_name(spec)): (spec, how) for spec, how in kernels if tiling(spec, how) is not None}
