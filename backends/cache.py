"""Built code on disk, by the content it was built from: a model that was compiled before is not compiled again.

An entry is one zip as bundles are: uncompressed, never pickled, every member under its sha256. It is written aside and
renamed, so that processes at work at the same time see whole entries, and the last one that wrote the same counts.
"""

import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..ir.errors import BundleError, UsageError, first_line
from ..ir.files import write_aside
from .bundle import MANIFEST, SEAL, read_zip, sha256, write_zip

FOLDER = "PLANISH_CACHE_DIR"
SIZE = "PLANISH_CACHE_SIZE"
SWITCH = "PLANISH_CACHE"
DEFAULT_SIZE = 2 * 10**9
SUFFIX = ".code"
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
# What a process that was killed left half written is removed when it is this old.
ABANDONED_SECONDS = 3600

logger = logging.getLogger("planish")


@dataclass(frozen=True)
class Entry:
    """Built code: files by name, and JSON-able facts about them."""

    facts: dict[str, Any]
    members: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Stored:
    """An entry as it lies on disk: its size in bytes, and when it was last used, in seconds since 1970."""

    path: Path
    bytes: int
    used: float


class Cache:
    """Entries in a folder, of which the least recently used go when they take more than `limit` bytes.

    A folder that cannot be used costs a warning and nothing else.
    """

    def __init__(self, folder: str | os.PathLike, limit: int = DEFAULT_SIZE):
        self.folder, self.limit = Path(folder), limit
        self._said = False

    @staticmethod
    def default() -> "Cache | None":
        """The cache that the environment names; None where it is switched off.

        PLANISH_CACHE_DIR  the folder; `planish` in $XDG_CACHE_HOME or ~/.cache if not given
        PLANISH_CACHE_SIZE the most it holds: bytes, or a number with kB, MB, GB or TB; 2 GB if not given
        PLANISH_CACHE      "off" or "0" switches it off

        Raises UsageError for a size that cannot be read.
        """
        if os.environ.get(SWITCH, "on").strip().lower() in ("off", "0", "no", "false"):
            return None
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Cache(os.environ.get(FOLDER) or Path(home) / "planish", size_limit(os.environ.get(SIZE)))

    def get(self, key: str) -> Entry | None:
        """The entry of a key; None where there is none. One that is damaged is removed."""
        path = self._path(key)
        if not path.is_file() or not self._is_ours():
            return None
        try:
            entry = _read(path, key)
            os.utime(path)
        except (BundleError, ValueError, KeyError, TypeError) as error:
            logger.warning("the cache: %s; it is built again", first_line(error).rstrip("."))
            self.drop(key)
            return None
        except OSError:  # another process removed it, or the folder is read-only, which hurts nobody
            return _read(path, key) if path.is_file() else None
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry, and let the least recently used go where they are too many. Never raises for the disk."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_ours():
                return
            text = _text(key, entry)
            if len(text) + sum(map(len, entry.members.values())) > self.limit:
                return
            with write_aside(self._path(key)) as draft:
                write_zip(draft, text, entry.members)
            self._evict(keep=self._path(key))
        except OSError as error:
            self._say(f"nothing is kept in '{self.folder}' ({error.strerror or error})")

    def drop(self, key: str) -> None:
        """Remove an entry, if it is there and can be removed."""
        _unlink(self._path(key))

    def stored(self) -> list[Stored]:
        """All entries, the least recently used first."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                status = path.stat()
            except OSError:  # removed by another process
                continue
            if stat.S_ISREG(status.st_mode):
                found.append(Stored(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: (entry.used, entry.path.name))

    def clear(self) -> list[Stored]:
        """Remove all entries. Returns those that went."""
        gone = [entry for entry in self.stored() if _unlink(entry.path)]
        self._sweep(0)
        return gone

    def _evict(self, keep: Path) -> None:
        entries = self.stored()
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            if total > self.limit and entry.path != keep and _unlink(entry.path):
                total -= entry.bytes
        self._sweep(ABANDONED_SECONDS)

    def _sweep(self, age: float) -> None:
        """Remove drafts that nobody will finish."""
        for room in self.folder.glob(f".*{SUFFIX}.*"):
            try:
                if time.time() - room.stat().st_mtime >= age:
                    shutil.rmtree(room, ignore_errors=True)
            except OSError:
                continue

    def _is_ours(self) -> bool:
        """Entries hold code that will run here: a folder where others may write is not read."""
        status = self.folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & stat.S_IWOTH:
            return True
        self._say(f"'{self.folder}' is not used: other users may write there (chmod 700, or set {FOLDER})")
        return False

    def _say(self, what: str) -> None:
        if not self._said:
            self._said = True
            logger.warning("the cache: %s", what)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"


def size_limit(text: str | None) -> int:
    """Bytes of "500 MB", "2GB" or "1000000". Raises UsageError for anything else."""
    if text is None or not text.strip():
        return DEFAULT_SIZE
    number = text.strip().lower()
    unit = next((factor for name, factor in UNITS.items() if number.endswith(name)), 1)
    if unit > 1:
        number = number[:-2].strip()
    if not number.isascii() or not number.replace(".", "", 1).isdecimal():
        raise UsageError(SIZE, f"'{text}' was given", "expected bytes, or a number with kB, MB, GB or TB")
    return int(float(number) * unit)


def _text(key: str, entry: Entry) -> bytes:
    members = {name: sha256(content) for name, content in entry.members.items()}
    return json.dumps({"key": key, "facts": entry.facts, "members": members}, sort_keys=True).encode()


def _read(path: Path, key: str) -> Entry:
    """Raises BundleError or ValueError for a file that is not the entry that was written."""
    members = read_zip(str(path))
    text = members.pop(MANIFEST, b"")
    if members.pop(SEAL, b"") != sha256(text).encode():
        raise BundleError(str(path), "it is damaged: the sha256 of its facts differs")
    document = json.loads(text)
    if document["key"] != key or document["members"] != {name: sha256(c) for name, c in members.items()}:
        raise BundleError(str(path), "it is damaged: a sha256 differs")
    return Entry(document["facts"], members)


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
