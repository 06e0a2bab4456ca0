"""Opening a .pt2 archive that someone else wrote without running anything that is in it.

torch.export.load trusts its file: tensor subclasses, script objects and example inputs are unpickled, symbolic
expressions go through sympy's `eval`, call targets are looked up anywhere inside torch, and container descriptions
import the modules that they name. So only what an ordinary program consists of is handed to it.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError, first_line

# Members after the archive's top folder. Example inputs are pickled, and nothing here needs them: they are emptied.
_PLAIN_MEMBER = re.compile(
    r"models/\w+\.json|archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+_config\.json"
)
_EXAMPLE_INPUTS = re.compile(r"data/sample_inputs/\w+\.pt")
_TARGET = re.compile(
    r"torch\.ops\.(?!import_module|load_library|loaded_libraries|_)\w+\.\w+(\.\w+)?"
    r"|torch\._?sym_\w+|_operator\.\w+|math\.\w+|#?[\w:]+"
)
_EXPRESSION = re.compile(r"[\w\s'+\-*/%(),.<>=&|~!]*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_EXPRESSION_WORD = re.compile(
    r"[suz]\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Where"
    r"|ModularIndexing|IntTrueDiv|FloatTrueDiv|ToFloat|(Trunc|Floor|Ceil|Round)ToInt|(Strict)?(Less|Greater)Than"
    r"|Equality|Unequality|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|floor|ceiling|int_oo|oo|true|false|True|False"
    r"|positive|nonnegative|integer|real|precision|evaluate"
)


def load_exported_program(path: Path) -> torch.export.ExportedProgram:
    """torch.export.load for files that consist of plain tensors and ops. Example inputs are dropped.

    Raises UsageError for broken archives and for files with a pickle or a name that could run foreign code.
    """
    try:
        members = _read_members(path)
        documents = {name: json.loads(data) for name, data in members.items() if name.endswith(".json")}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise UsageError("capture", f"'{path}' is not a readable .pt2 file: {first_line(error)}") from error
    for found in (*_foreign_members(members), *_foreign_entries(documents)):
        raise UsageError("capture", f"'{path}' holds {found}", "loading it could run foreign code", "export it without")
    try:
        return torch.export.load(_archive(members))  # pyright: ignore[reportArgumentType]
    except Exception as error:
        raise UsageError("capture", f"'{path}' is not a readable .pt2 file: {first_line(error)}") from error


def _read_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(members: dict[str, bytes]) -> io.BytesIO:
    """The archive anew, so that what torch reads is what was checked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, b"" if _EXAMPLE_INPUTS.fullmatch(_inner(name)) else data)
    buffer.seek(0)
    return buffer


def _inner(name: str) -> str:
    return name.partition("/")[2]


def _foreign_members(members: dict[str, bytes]) -> Iterator[str]:
    for name in members:
        if not _PLAIN_MEMBER.fullmatch(_inner(name)) and not _EXAMPLE_INPUTS.fullmatch(_inner(name)):
            yield f"'{name}', which is neither a graph nor a plain tensor"


def _foreign_entries(documents: dict[str, Any]) -> Iterator[str]:
    for name, document in documents.items():
        for entry in _dicts(document):
            target = entry.get("target") if "inputs" in entry else None  # elsewhere a target only tells where from
            if entry.get("use_pickle"):
                yield f"a pickled entry ({name})"
            if isinstance(target, str) and not _TARGET.fullmatch(target):
                yield f"a call of '{target}'"
            if "expr_str" in entry and not _is_expression(entry["expr_str"]):
                yield f"the symbolic expression {entry['expr_str']!r}"
            if "__enum__" in entry or "default_factory_module" in entry:
                yield f"a container that imports a module ({name})"


def _is_expression(text: Any) -> bool:
    return (
        isinstance(text, str)
        and _EXPRESSION.fullmatch(text) is not None
        and all(_EXPRESSION_WORD.fullmatch(word) for word in _WORD.findall(text))
    )


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Every dict in a document, also in the JSON texts that torch nests in JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except ValueError:
            return
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _dicts(inner)
