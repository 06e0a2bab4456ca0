"""The file of measured register tiles: one for each core, small JSON, made on the machine it is for or on its model.

{"format": 1, "core": "GenuineIntel 6 143 8", "machine": "x86_64", "lanes": 16, "registers": 32,
 "tiles": {"fp32": {"pointwise batch=1 height=7 width=7 in_channels=960 out_channels=160": "7x2"}}}
"""

import json
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

from ..ir.errors import UsageError
from ..ir.files import exclusively, write_aside
from .target import Target
from .tiles import NO_TILES, Tiles

FOLDER = "PLANISH_TILES"
SHIPPED = Path(__file__).with_name("core_tiles")
FORMAT = 1
_BROKEN = "remove it, and measure again with tune=N"
_TILE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")
_OFF = ("off", "0", "no", "false")
# What tells cores apart in /proc/cpuinfo, by the name that Linux gives a machine.
_IDENTITY = {
    "x86_64": ("vendor_id", "cpu family", "model", "stepping"),
    "aarch64": ("CPU implementer", "CPU part"),
}


def tiles_for(target: Target, path: str | os.PathLike | None = None, *, may_be_new: bool = False) -> Tiles:
    """The tiles of a file; without one those of the row, else what comes with Planish for the core.

    What was measured on this machine goes before that where the code is for it.

    may_be_new: the file need not be there yet

    Raises UsageError for a file that is not there, is broken, or was made on another kind of machine.
    """
    if path is not None:
        return NO_TILES if may_be_new and not Path(path).exists() else read_tiles(path, target)
    if target.tiles.rows:
        return target.tiles
    shipped = shipped_tiles(target)
    own = default_path() if target.name == "local" else None
    return shipped.replaced_by(read_tiles(own, target)) if own and own.exists() else shipped


def shipped_path(target: Target) -> Path:
    """Where the tiles lie that come with Planish for the core of a target, if there are any."""
    return SHIPPED / f"{target.cpu}.json"


def shipped_tiles(target: Target) -> Tiles:
    """The tiles that come with Planish for the core of a target."""
    path = shipped_path(target)
    return read_tiles(path, target, target.cpu) if path.exists() else NO_TILES


def check_tuning(count: int, target: Target, batch: int | str | None, path: str | os.PathLike | None) -> Path:
    """The file that tiles are kept in. Raises UsageError where nothing can be measured or kept."""
    if count < 2:
        raise UsageError("tune", f"{count} was given", "expected the number of tiles to try for each layer, at least 2")
    if target.name != "local":
        what = f"the code is for {target.name}, and this machine is {core_name()}"
        advice = f"there run: planish compile MODEL --tune {count} --tiles FILE; bring FILE here and pass --tiles FILE"
        raise UsageError("tune", what, "tiles are measured on the device that they are for", advice)
    if batch == "dynamic":
        raise UsageError("tune", "the batch is 'dynamic'", "tiles are measured for a batch size", "pass a number")
    found = Path(path) if path is not None else default_path()
    if found is None:
        raise UsageError("tune", f"{FOLDER} is off and no file was named", "name one with tiles=FILE")
    return found


def default_path() -> Path | None:
    """Where the tiles of this machine's core are kept: in the folder PLANISH_TILES, by default `planish/tiles` in
    $XDG_CACHE_HOME or ~/.cache. None where PLANISH_TILES is "off" or "0".
    """
    chosen = os.environ.get(FOLDER, "").strip()
    if chosen.lower() in _OFF:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", core_name()).strip("-")
    return Path(chosen or Path(home) / "planish" / "tiles") / f"{name}.json"


@cache
def core_name() -> str:
    """The first core of this machine as Linux names it: `GenuineIntel 6 143 8`, `0x41 0xd0b` (a Cortex-A76)."""
    wanted = _IDENTITY.get(platform.machine(), ())
    try:
        pairs = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        pairs = []
    facts = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    return " ".join(facts[key] for key in wanted if key in facts) or platform.machine() or "unknown"


def read_tiles(path: str | os.PathLike, target: Target, core: str = "") -> Tiles:
    """The tiles of a file for a target.

    core: the one that the file must be for; by default any, but this machine's for target "local"

    Raises UsageError for a file that cannot be read, is no tile file, or is for other vector units; for target "local"
    also for one of another core.
    """
    document = _document(Path(path))
    expected: dict[str, Any] = {name: getattr(target, name) for name in ("machine", "lanes", "registers")}
    if core or target.name == "local":
        expected["core"] = core or core_name()
    for name, wanted in expected.items():
        if document.get(name) != wanted:
            what = f"it holds tiles for {name} {document.get(name)!r}"
            advice = "measure them on the machine that the code is for: planish compile --tune 4 --tiles FILE"
            raise UsageError(str(path), what, f"expected {wanted!r}, as {target.name} has it", advice)
    return Tiles(tuple(sorted(_rows(path, document.get("tiles")))))


def write_tiles(path: str | os.PathLike, tiles: Tiles, target: Target, core: str = "") -> None:
    """Write tiles that were measured on a core, by default this machine's. Equal tiles give equal bytes."""
    table: dict[str, dict[str, str]] = {}
    for arithmetic, layer, pixels, vectors in tiles.rows:
        table.setdefault(arithmetic, {})[layer] = f"{pixels}x{vectors}"
    facts = {
        "core": core or core_name(),
        "machine": target.machine,
        "lanes": target.lanes,
        "registers": target.registers,
    }
    with write_aside(path) as draft:
        draft.write_text(json.dumps({"format": FORMAT, **facts, "tiles": table}, indent=1) + "\n", encoding="utf-8")


def add_tile(path: str | os.PathLike, target: Target, arithmetic: str, layer: str, pixels: int, vectors: int) -> Tiles:
    """Add a tile to a file that others may add to at the same time. Gives what the file holds then."""
    with exclusively(path):
        known = read_tiles(path, target) if Path(path).exists() else NO_TILES
        known = known.with_tile(arithmetic, layer, pixels, vectors)
        write_tiles(path, known, target)
    return known


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        what = f"it cannot be read ({error.strerror or error})"
        raise UsageError(str(path), what, "expected a tile file, which compile with tune=N writes") from error
    except ValueError as error:
        raise UsageError(str(path), f"it is no JSON ({error})", _BROKEN) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise UsageError(str(path), f"it is no tile file of format {FORMAT}, but {found!r}", _BROKEN)
    return document


def _rows(path: str | os.PathLike, table: Any) -> list[tuple[str, str, int, int]]:
    rows = []
    for arithmetic, layers in _mapping(path, "tiles", table).items():
        for layer, tile in _mapping(path, arithmetic, layers).items():
            sizes = _TILE.fullmatch(tile) if isinstance(tile, str) else None
            if sizes is None:
                what = f"the tile of {arithmetic} '{layer}' is {tile!r}"
                raise UsageError(str(path), what, "expected pixels x vectors, as in '7x2'", _BROKEN)
            rows.append((arithmetic, layer, int(sizes[1]), int(sizes[2])))
    return rows


def _mapping(path: str | os.PathLike, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(str(path), f"'{key}' is {value!r}", "expected tiles by layer", _BROKEN)
    return value
