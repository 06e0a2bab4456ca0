"""Opening a .pt2 archive that someone else wrote, without letting a pickle in it run."""

import json
import zipfile
from pathlib import Path

import torch

from .errors import UsageError


def load_exported_program(path: Path) -> torch.export.ExportedProgram:
    """torch.export.load for files that hold no pickled weights or constants.

    torch.export writes tensors as raw bytes and marks in its JSON the few entries that are pickled (tensor
    subclasses, script objects); such a file is refused before anything of it is read. Example inputs are dropped.
    Raises UsageError for those and for broken archives.
    """
    pickled = sorted(_pickled_entries(path))
    if pickled:
        what = f"'{path}' holds pickled entries: {', '.join(pickled[:3])}"
        raise UsageError("capture", what, "loading them could run foreign code", "export the model without them")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise UsageError("capture", f"'{path}' is not a readable .pt2 file: {str(error).splitlines()[0]}") from error


def _pickled_entries(path: Path) -> list[str]:
    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith("_config.json"):
                    continue
                config = json.loads(archive.read(name)).get("config", {})
                found += [entry for entry, facts in config.items() if facts.get("use_pickle")]
    except (zipfile.BadZipFile, ValueError, AttributeError) as error:
        raise UsageError("capture", f"'{path}' is not a readable .pt2 file: {error}") from error
    return found
