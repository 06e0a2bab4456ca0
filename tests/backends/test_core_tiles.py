"""The register tiles that come with Planish for some cores."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn

import planish
from planish.backends.target import Target
from planish.backends.tile_file import SHIPPED, shipped_tiles, tiles_for
from planish.backends.tvm.kernels import FAMILIES, Window, tiling
from planish.backends.tvm.kernels.tile import Tile, candidates, layer_name, tile_of
from planish.backends.tvm.relax import Emitter

KINDS = {kind.__name__.lower(): kind for kind in FAMILIES}
ROWS = [Target.get(name) for name in Target.names() if name != "local"]
BOARDS = [row for row in ROWS if (SHIPPED / f"{row.cpu}.json").exists()]


def spec_of(layer: str) -> Any:
    """The kernel that a name describes, which leaves its epilogue out."""
    family, *sizes = layer.split()
    return made(KINDS[family], dict(size.split("=") for size in sizes))


def made(kind: type, texts: dict[str, str]) -> Any:
    values = {field.name: number(texts[field.name]) for field in fields(kind) if field.name in texts}
    if any(field.name == "window" for field in fields(kind)):
        values["window"] = made(Window, texts)
    return kind(**values)


def number(text: str) -> Any:
    several = [None if each == "any" else int(each) for each in text.split("x")]
    return tuple(several) if len(several) > 1 else several[0]


def test_every_file_is_for_a_core_of_some_target():
    assert {path.stem for path in SHIPPED.glob("*.json")} == {row.cpu for row in BOARDS} != set()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_every_tile_fits_its_layer_and_is_not_the_rule_s(board):
    tiles = tiles_for(board)
    assert tiles == shipped_tiles(board)
    emitter = Emitter(planish.capture(nn.Linear(2, 2), torch.zeros(1, 2)), replace(board, cores=1))
    known = {how.name: how for how in (*emitter.floats.values(), emitter.integers) if how}
    for name, layer, pixels, vectors in tiles.rows:
        spec, how = spec_of(layer), known[name]
        covered = tiling(spec, how)
        assert layer_name(spec) == layer and covered is not None
        assert tile_of(spec, replace(how, tiles=tiles), covered) == Tile(pixels, vectors), layer
        assert candidates(covered, how)[0] != Tile(pixels, vectors), layer
