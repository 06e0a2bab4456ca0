"""Writing files so that a crash or Ctrl-C leaves either the old file or the new one, never half of one."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError


def check_writable(path: str | os.PathLike) -> None:
    """Raises UsageError where a file cannot come to be, for use before work is spent on what it will hold."""
    target = Path(path)
    if target.is_dir():
        raise UsageError(str(path), "it is a folder", "expected the name of a file to write")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(str(path), f"'{folder}' cannot be written to", "name a place that can")


@contextmanager
def write_aside(path: str | os.PathLike, *, directory: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any failure it is removed.

    directory: the temporary path is an empty folder, and an existing folder at `path` is replaced.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    draft = room / target.name
    try:
        if directory:
            draft.mkdir()
        yield draft
        if directory and target.exists():
            target.rename(room / "replaced")
        draft.replace(target)
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextmanager
def exclusively(path: str | os.PathLike) -> Iterator[None]:
    """Keep other processes that ask the same out while a file is read and written again.

    The lock is a file of its own beside it, empty and hidden; it goes with the process that holds it.
    """
    import fcntl  # of Unix alone

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a member with a fixed date, so that the same content gives the same archive bytes."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.external_attr = 0o644 << 16
    archive.writestr(member, data)
