"""Arrays in .npz and .npy files, for runs and for calibration."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .ir.errors import UsageError, first_line


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name; of an .npy the one array under the name "". Nothing is unpickled.

    Raises UsageError for a file that is not there, damaged, empty, or with Python objects.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise UsageError("data", f"there is no file '{path}'", "expected an .npz or .npy file") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        what = f"it is not a readable .npz or .npy file: {first_line(error).rstrip('.')}"
        raise UsageError(str(path), what, "write it with numpy.savez(path, input=array)") from error
    if not arrays:
        raise UsageError(str(path), "it holds no arrays", "write it with numpy.savez(path, input=array)")
    return arrays


def choose_arrays(where: str, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    """The arrays of the named inputs, in their order; a single array serves a single input under any name."""
    if len(arrays) == 1 and len(names) == 1:
        return list(arrays.values())
    missing = [name for name in names if name not in arrays]
    if missing:
        have = ", ".join(name or "one array without a name" for name in arrays)
        raise UsageError(where, f"it has no array '{missing[0]}'", f"the inputs are {', '.join(names)}; it has {have}")
    return [arrays[name] for name in names]


def as_dtype(where: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array in the input's dtype: floats fit floats, anything else must be the same."""
    wanted = np.dtype(dtype)
    if array.dtype != wanted and not (array.dtype.kind == wanted.kind == "f"):
        raise UsageError(where, f"an array has dtype {array.dtype}", f"expected {wanted}")
    return array.astype(wanted, copy=False)
