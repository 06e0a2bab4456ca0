"""Measured register tiles: the file, what compile makes of it, and what wrong files and wrong calls get."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import planish
from planish.__main__ import app
from planish.backends import tile_file, tune
from planish.backends.bundle import Bundle
from planish.backends.cache_key import content_key
from planish.backends.target import Target
from planish.backends.tile_file import (
    add_tile,
    core_name,
    default_path,
    read_tiles,
    shipped_tiles,
    tiles_for,
    write_tiles,
)
from planish.backends.tiles import NO_TILES, Tiles
from planish.backends.tvm.kernels import Dense, DirectConv, Epilogue, Pointwise, TransposedConv, Window, tiling
from planish.backends.tvm.kernels.tile import Tile, Tiling, candidates, layer_name, tile_of
from planish.backends.tvm.relax import Emitter
from planish.backends.tvm.tile_times import ratios

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LOCAL = Target.get("local")


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convs = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 40, 1)
        return nn.Sequential(*convs, nn.Flatten(), nn.Linear(40 * 144, 5)).eval()


POINTWISE = layer_name(Pointwise(1, 12, 12, 16, 40))


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """The tile file of this core, which is not there yet."""
    monkeypatch.setenv("PLANISH_TILES", str(tmp_path / "tiles"))
    found = default_path()
    assert found is not None and found.parent == tmp_path / "tiles"
    return found


def families(path: Path) -> list[str]:
    """The kinds of layers in a tile file."""
    return sorted(layer.split()[0] for _, layer, *_ in read_tiles(path, LOCAL).rows)


def tile_of_pointwise(compiled: planish.CompiledModel) -> str:
    (kernel,) = (row["kernel"] for row in compiled.report.layers if row["kernel"].startswith("pointwise"))
    return kernel


# ---------------------------------------------------------------- layers and their names


def test_a_layer_is_named_by_its_shape_and_not_by_its_epilogue():
    plain, finished = (Pointwise(1, 7, 9, 16, 32, epilogue) for epilogue in (Epilogue(), Epilogue("relu")))
    assert (
        layer_name(plain)
        == layer_name(finished)
        == ("pointwise batch=1 height=7 width=9 in_channels=16 out_channels=32")
    )
    window = Window((3, 3), (2, 2), (0, 1, 0, 1))
    shapes = [DirectConv(1, 8, 8, 3, 16, window), DirectConv(1, 8, 8, 3, 16, replace(window, stride=(1, 2)))]
    shapes += [DirectConv(1, 8, 8, 3, 16, window, image=True), Pointwise(None, 7, 9, 16, 32), Dense(7, 16, 32)]
    assert len({layer_name(shape) for shape in (*shapes, plain)}) == 6
    assert "padding=0x1x0x1" in layer_name(shapes[0])


def arithmetic(tiles: Tiles = NO_TILES):
    graph = planish.capture(nn.Linear(2, 2), torch.zeros(1, 2))
    return Emitter(graph, replace(LOCAL, tiles=tiles)).arithmetic


def test_a_measured_tile_goes_before_the_rule_and_one_that_is_too_tall_is_cut():
    spec, extents = Dense(5, 16, 64), Tiling(5, 4)
    assert tile_of(spec, arithmetic(), extents) == candidates(extents, arithmetic())[0]
    measured = arithmetic(NO_TILES.with_tile("fp32", layer_name(spec), 2, 1))
    assert tile_of(spec, measured, extents) == Tile(2, 1)
    assert tile_of(replace(spec, epilogue=Epilogue("relu")), measured, extents) == Tile(2, 1)
    assert tile_of(replace(spec, in_features=17), measured, extents) == candidates(extents, arithmetic())[0]
    tall = arithmetic(NO_TILES.with_tile("fp32", layer_name(spec), 9, 1))
    assert tile_of(spec, tall, extents) == Tile(5, 1)


def test_all_candidates_fit_and_the_first_takes_the_least_estimated_time():
    extents, how = Tiling(30, 6, reserved=1, totals=1, multiple=2), arithmetic()
    found = candidates(extents, how)
    every = {Tile(p, v) for p in range(1, 29) for v in range(1, 7) if extents.fits(Tile(p, v), how)}
    assert set(found) == every and len(found) == len(every) and all(tile.vectors % 2 == 0 for tile in found)
    times = [extents.time(tile, how) for tile in found]
    assert times == sorted(times)


def test_kernels_say_what_their_tiles_cover():
    lanes = LOCAL.lanes
    assert tiling(Pointwise(2, 5, 7, 8, 3 * lanes), arithmetic()) == Tiling(70, 3)
    stem = DirectConv(1, 8, 8, 3, lanes, Window((3, 3)), image=True)
    assert tiling(stem, arithmetic()) == Tiling(6, 1, reserved=2)
    up = TransposedConv(1, 4, 4, 8, 8, (2, 2), (2, 2), (0, 0), (1, 1), (8, 8))
    assert tiling(up, arithmetic()) is None


# ---------------------------------------------------------------- compile


def test_a_tile_file_changes_the_kernel_and_not_the_answer(path):
    by_rule = planish.compile(model(), X)
    assert "tile 1 pixels x 1 vectors" not in tile_of_pointwise(by_rule)
    write_tiles(path, NO_TILES.with_tile("fp32", POINTWISE, 1, 1), LOCAL)
    measured = planish.compile(model(), X)
    assert "tile 1 pixels x 1 vectors" in tile_of_pointwise(measured)
    # A tile orders no sum: each output is one chain of multiply-adds, whatever stands beside it.
    assert torch.equal(measured(X), by_rule(X))


def test_torch_compile_and_profile_use_the_file_too(path, fresh_dynamo):
    write_tiles(path, NO_TILES.with_tile("fp32", POINTWISE, 1, 1), LOCAL)
    rows = planish.compile(model(), X).profile(X, runs=1).layers
    assert any("tile 1 pixels x 1 vectors" in row.kernel for row in rows)
    with torch.no_grad():
        torch.compile(model(), backend="planish")(X)
    assert any("tile 1 pixels x 1 vectors" in row["kernel"] for row in planish.reports()[-1].layers)


def test_tuning_fills_the_file_and_later_compiles_use_it(path):
    tuned = planish.compile(model(), X, tune=3)
    assert families(path) == ["dense", "directconv", "pointwise"]
    assert "tune" in tuned.report.seconds
    torch.testing.assert_close(tuned(X), model()(X), rtol=1e-4, atol=1e-5)  # float32 sums in another order
    kept = read_tiles(path, LOCAL).get("fp32", POINTWISE)
    assert kept is not None and f"tile {kept[0]} pixels x {kept[1]} vectors" in tile_of_pointwise(tuned)
    assert planish.compile(model(), X).report.layers == tuned.report.layers


def test_what_was_measured_is_not_measured_again(path):
    # No measurement could choose one accumulator for this layer: the rule's best three do not contain it.
    write_tiles(path, NO_TILES.with_tile("fp32", POINTWISE, 1, 1), LOCAL)
    planish.compile(model(), X, tune=3)
    assert families(path) == ["dense", "directconv", "pointwise"]
    assert read_tiles(path, LOCAL).get("fp32", POINTWISE) == (1, 1)
    whole = path.read_bytes()
    planish.compile(model(), X, tune=3)
    assert path.read_bytes() == whole


def test_the_rule_s_tile_stays_where_no_other_is_clearly_faster():
    rule, other, third = Tile(7, 3), Tile(8, 2), Tile(1, 1)
    # Rounds of 10, 20 and 30 ms: the clock changes, the tile takes 0.9 of the rule's time in the median.
    assert ratios({rule: [10, 20, 30], other: [9, 18, 29]}) == {rule: 1.0, other: 0.9}
    assert tune.choice({rule: 1.0, other: 0.98, third: 2.0}) == rule
    assert tune.choice({rule: 1.0, other: 0.9, third: 0.95}) == other
    assert tune.choice({rule: 1.0}) == rule


def test_one_of_the_rule_s_best_is_chosen():
    spec, how = Pointwise(1, 12, 12, 16, 40), arithmetic()
    assert Tile(*tune.fastest(spec, how, 2, LOCAL)) in candidates(tiling(spec, how), how)[:2]


def test_what_is_measured_is_the_time_of_each_tile():
    spec, how = Pointwise(1, 6, 6, 32, 32), arithmetic()
    tiles = candidates(tiling(spec, how), how)[:3]
    times = tune.TileTimes(spec, how, tiles, LOCAL)
    taken = times.taken(2)
    assert tuple(taken) == tiles
    assert all(len(seconds) == 2 and 0 < min(seconds) < 10 for seconds in taken.values())
    shares = times.ratios(3)
    assert tuple(shares) == tiles and shares[tiles[0]] == 1 and min(shares.values()) > 0
    with pytest.raises(ValueError, match="run time only"):
        tune.TileTimes(replace(spec, batch=None), how, tiles, LOCAL)


def test_the_layers_of_a_model_of_which_a_part_stays_in_pytorch_are_tuned(path):
    class Angles(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = model()[:3]

        def forward(self, x):
            return torch.linalg.svdvals(self.convs(x)[0, 0]), self.convs(x)

    planish.compile(Angles().eval(), X, tune=2)
    assert families(path) == ["directconv", "pointwise"]


def test_the_tiles_are_part_of_the_cache_key():
    graph = planish.capture(model(), X)
    tiles = [NO_TILES, NO_TILES.with_tile("fp32", POINTWISE, 1, 1), NO_TILES.with_tile("fp32", POINTWISE, 2, 1)]
    keys = [content_key(graph, replace(LOCAL, tiles=each)) for each in (*tiles, tiles[1])]
    assert len(set(keys)) == 3 and keys[3] == keys[1]


def test_a_board_takes_the_file_that_was_made_on_it(tmp_path):
    board, file = Target.get("raspberry-pi-4"), tmp_path / "pi.json"
    write_tiles(file, NO_TILES.with_tile("fp32", layer_name(Dense(1, 8, 4)), 1, 1), board)
    assert tiles_for(board, file).rows and tiles_for(board) == shipped_tiles(board)
    plain = planish.compile(nn.Linear(8, 4).eval(), torch.zeros(1, 8), target=board, tiles=file)
    plain.save(tmp_path / "x.planish")
    assert "tiles" not in Bundle.open(tmp_path / "x.planish").manifest.target


def test_this_machine_takes_its_own_tiles_before_those_that_come_with_its_core(path, tmp_path, monkeypatch):
    monkeypatch.setattr(tile_file, "SHIPPED", tmp_path)
    shipped = NO_TILES.with_tile("fp32", "a", 3, 1).with_tile("fp32", POINTWISE, 2, 1)
    write_tiles(tmp_path / f"{LOCAL.cpu}.json", shipped, LOCAL, LOCAL.cpu)
    assert tiles_for(LOCAL) == shipped
    assert "tile 2 pixels x 1 vectors" in tile_of_pointwise(planish.compile(model(), X))
    write_tiles(path, NO_TILES.with_tile("fp32", POINTWISE, 4, 1), LOCAL)
    assert tiles_for(LOCAL) == shipped.with_tile("fp32", POINTWISE, 4, 1)
    other = replace(Target.get("raspberry-pi-5"), cpu=LOCAL.cpu)
    with pytest.raises(planish.PlanishError, match="it holds tiles for machine"):
        tiles_for(other)


# ---------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tune": 1}, "tune: 1 was given; expected the number of tiles"),
        ({"tune": -3}, "tune: -3 was given"),
        ({"tune": 4, "target": "raspberry-pi-4"}, "raspberry-pi-4.*there run: planish compile MODEL --tune 4 --tiles"),
        ({"tune": 4, "batch": "dynamic"}, "the batch is 'dynamic'.*pass a number"),
        ({"tiles": "nowhere.json"}, "nowhere.json: it cannot be read"),
    ],
)
def test_wrong_options_say_what_is_wrong(path, options, words):
    with pytest.raises(planish.PlanishError, match=words):
        planish.compile(model(), X, **options)


def test_tuning_needs_a_place_for_what_it_finds(monkeypatch):
    monkeypatch.setenv("PLANISH_TILES", "off")
    with pytest.raises(planish.PlanishError, match="PLANISH_TILES is off and no file was named"):
        planish.compile(model(), X, tune=2)


def document(**changes: Any) -> dict[str, Any]:
    facts = {"core": core_name(), "machine": LOCAL.machine, "lanes": LOCAL.lanes, "registers": LOCAL.registers}
    return {"format": 1, **facts, "tiles": {"fp32": {POINTWISE: "1x1"}}, **changes}


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "it is no JSON"),
        ("[1]", "no tile file of format 1, but 'list'"),
        (json.dumps(document(format=2)), "no tile file of format 1, but 2"),
        (json.dumps(document(core="0x41 0xd08")), "for core '0x41 0xd08'"),
        (json.dumps(document(machine="riscv64")), "for machine 'riscv64'"),
        (json.dumps(document(lanes=2)), "for lanes 2; expected"),
        (json.dumps(document(tiles=[])), r"'tiles' is \[\]"),
        (json.dumps(document(tiles={"fp32": 3})), "'fp32' is 3"),
        (json.dumps(document(tiles={"fp32": {POINTWISE: "0x2"}})), "pointwise .* is '0x2'; expected pixels x vectors"),
        (json.dumps(document(tiles={"fp32": {POINTWISE: [1, 2]}})), r"pointwise .* is \[1, 2\]"),
    ],
)
def test_a_broken_or_foreign_file_is_named_with_what_is_wrong(path, text, words):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(planish.PlanishError, match=words) as raised:
        planish.compile(model(), X)
    assert str(path) in str(raised.value)


def test_a_tile_that_fits_no_register_names_its_layer(path):
    write_tiles(path, NO_TILES.with_tile("fp32", POINTWISE, 28, 3), LOCAL)
    with pytest.raises(planish.PlanishError, match=f"28 pixels x 3 vectors does not fit '{POINTWISE}'"):
        planish.compile(model(), X)


def test_the_file_is_written_whole_and_equal_tiles_give_equal_bytes(path, monkeypatch):
    rows = [("vnni", "a", 3, 4), ("fp32", "b", 1, 2), ("fp32", "a", 7, 2)]
    for order in (rows, rows[::-1]):
        tiles = NO_TILES
        for row in order:
            tiles = tiles.with_tile(*row)
        write_tiles(path, tiles, LOCAL)
        assert read_tiles(path, LOCAL) == tiles == Tiles(tuple(sorted(rows)))
        text = path.read_text()
    assert tiles.with_tile("fp32", "b", 5, 5).get("fp32", "b") == (5, 5)

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(json, "dumps", full)  # as if the disk were full
    with pytest.raises(OSError):
        write_tiles(path, NO_TILES, LOCAL)
    assert path.read_text() == text and len(list(path.parent.iterdir())) == 1


def test_nothing_is_lost_where_several_add_to_a_file(path):
    """Each has a lock of its own, as processes have."""
    layers = [layer_name(Dense(1, size, 4)) for size in range(1, 25)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda layer: add_tile(path, LOCAL, "fp32", layer, 1, 1), layers))
    assert {row[1] for row in read_tiles(path, LOCAL).rows} == set(layers)


def test_the_command_line_tunes_into_a_file(tmp_path, monkeypatch):
    source = "import torch\nfrom torch import nn\n\n\ndef net():\n    return nn.Linear(8, 16), torch.randn(1, 8)\n"
    (tmp_path / "net.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    words = ["compile", "net.py:net", "--no-cache", "--tiles", "tiles.json"]
    done = CliRunner().invoke(app, [*words, "--tune", "2"])
    assert done.exit_code == 0, done.output
    assert families(tmp_path / "tiles.json") == ["dense"]
    wrong = CliRunner().invoke(app, [*words, "--tune", "2", "--target", "raspberry-pi-4"])
    assert wrong.exit_code == 2
