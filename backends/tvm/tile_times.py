"""How long one layer takes on this machine with each of some register tiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from statistics import median
from typing import Any

import numpy as np
import tvm

from ..target import Target
from ..tiles import NO_TILES
from .arithmetic import Arithmetic
from .build import TIR_PIPELINE, tvm_target
from .kernels import prim_func, signature
from .kernels.shapes import Signature
from .kernels.tile import Tile, layer_name


class TileTimes:
    """A layer, compiled for one core once with every tile.

    Weights come from beyond the second-level cache, as they do in a model whose other layers ran since: calls take
    turns with copies of them that fill it twice. Activations stay where the last call left them.
    """

    def __init__(self, spec: Any, arithmetic: Arithmetic, tiles: Sequence[Tile], target: Target):
        """The extents of `spec` are all known. Raises ValueError where one is not."""
        shapes = signature(spec, arithmetic)
        if any(extent is None for shape, _ in shapes.parameters() for extent in shape):
            raise ValueError(f"tile times: '{layer_name(spec)}' has an extent that is known at run time only.")
        alone = replace(arithmetic, cores=1)
        functions = {
            f"tile_{i}": prim_func(spec, with_tile(alone, spec, tile)).with_attr("global_symbol", f"tile_{i}")
            for i, tile in enumerate(tiles)
        }
        module = tvm.IRModule(functions)
        built: Any = tvm.compile(module, target=tvm_target(replace(target, cores=1)), tir_pipeline=TIR_PIPELINE)
        self._calls: dict[Tile, Callable[..., None]] = {tile: built[f"tile_{i}"] for i, tile in enumerate(tiles)}
        self._operands = _operands(shapes, 2 * 1024 * target.l2_kib)
        self._turn = 0

    def taken(self, rounds: int) -> dict[Tile, list[float]]:
        """Seconds of each tile's call in every round; they take turns, in an order that rotates."""
        taken: dict[Tile, list[float]] = {tile: [] for tile in self._calls}
        tiles = list(self._calls)
        for turn in range(rounds):
            first = turn % len(tiles)
            for tile in tiles[first:] + tiles[:first]:
                taken[tile].append(self._time(self._calls[tile]))
        return taken

    def ratios(self, rounds: int) -> dict[Tile, float]:
        """The time of each tile over that of the first one."""
        return ratios(self.taken(rounds))

    def _time(self, call: Callable[..., None]) -> float:
        given = self._operands[self._turn % len(self._operands)]
        self._turn += 1
        started = time.perf_counter()
        call(*given)
        return time.perf_counter() - started


def ratios(taken: Mapping[Tile, Sequence[float]]) -> dict[Tile, float]:
    """The median, over rounds, of a tile's time over that of the first tile in the same round.

    The clock of a processor goes up and down by more than tiles differ, but slowly: calls of one round meet the same.
    """
    first = next(iter(taken.values()))
    return {tile: median(a / b for a, b in zip(times, first, strict=True)) for tile, times in taken.items()}


def with_tile(arithmetic: Arithmetic, spec: Any, tile: Tile) -> Arithmetic:
    """An arithmetic that computes one layer with this tile, and all others by the rule."""
    chosen = NO_TILES.with_tile(arithmetic.name, layer_name(spec), tile.pixels, tile.vectors)
    return replace(arithmetic, tiles=chosen)


def _operands(shapes: Signature, room: int) -> list[tuple[Any, ...]]:
    """The arguments of calls: weights in as many copies as fill `room` bytes, at least two, all else shared."""
    generator = np.random.default_rng(0)

    def drawn(shape: Sequence[int | None], dtype: str) -> Any:
        return tvm.runtime.tensor(_numbers(generator, [int(extent or 1) for extent in shape], dtype))

    weights = list(zip(shapes.weights, shapes.weight_dtypes, strict=True))
    taken = sum(prod(extent or 1 for extent in shape) * np.dtype(dtype).itemsize for shape, dtype in weights)
    inputs = [drawn(shape, shapes.activation) for shape in shapes.inputs]
    residual = [drawn(shapes.residual, shapes.activation)] if shapes.residual else []
    output = drawn(shapes.output, shapes.result)
    copies = max(2, -(-room // max(taken, 1)))
    return [(*inputs, *(drawn(shape, dtype) for shape, dtype in weights), *residual, output) for _ in range(copies)]


def _numbers(generator: np.random.Generator, shape: list[int], dtype: str) -> np.ndarray:
    """Normal floats, integers of all their bits: none is slower to multiply than another."""
    if np.issubdtype(np.dtype(dtype), np.floating):
        return generator.standard_normal(shape, np.float32).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, shape, np.dtype(dtype), endpoint=True)
