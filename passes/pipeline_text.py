"""Pipelines as text: `fold-batch-norm, prune-channels{macs=0.7, round-to=8}`, and as TOML. Both round-trip."""

import dataclasses
import difflib
import importlib
import importlib.metadata
import json
import math
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from ..ir.errors import UsageError
from .base import NAME, REGISTRY, Pass

ENTRY_POINT_GROUP = "planish.passes"

_OPTIONS = r"""(?:[^{}"]|"(?:[^"\\]|\\.)*")*"""  # braces only inside quotes
_PASS = re.compile(rf"\s*(?P<name>[A-Za-z][\w-]*)\s*(?:\{{(?P<options>{_OPTIONS})\}})?\s*(?P<end>,|$)")
_BARE_WORD = re.compile(r"[A-Za-z_][\w.*-]*$")
_RESERVED = {"true", "false", "none", "null", "infinity", "nan"}


def parse(text: str) -> tuple[Pass, ...]:
    """Passes from one line of text. Raises UsageError for syntax, an unknown pass or a wrong option."""
    passes, at = [], 0
    while at < len(text) and text[at:].strip():
        found = _match_pass(text, at)
        passes.append(make(found[0], found[1]))
        at = found[2]
    return tuple(passes)


def parse_toml(text: str) -> tuple[Pass, ...]:
    """Passes from TOML: an array of tables `[[pass]]`, each with a `name` and its options."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError("pipeline", f"the TOML cannot be read: {error}") from error
    entries = document.pop("pass", None)
    if document or not isinstance(entries, list) or not all(map(_is_named, entries)):
        raise UsageError("pipeline", "the TOML is no list of passes", 'expected [[pass]] tables with name = "..."')
    return tuple(make(e["name"], {k: v for k, v in e.items() if k != "name"}) for e in entries)


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str)


def to_toml(passes: tuple[Pass, ...]) -> str:
    """The TOML that `parse_toml` reads back to the same passes. TOML has no null: `{}` stands for none.

    Raises UsageError for a wrapped function, which has no text form.
    """
    tables = []
    for entry in passes:
        if not entry.name:
            raise UsageError("pipeline", f"{entry} is a function", "make it a Pass with a name to write it down")
        lines = ["[[pass]]", f"name = {json.dumps(entry.name)}"]
        lines += [f"{_dashed(k)} = {_toml_value(v)}" for k, v in entry.options().items()]
        tables.append("\n".join(lines))
    return "\n\n".join(tables) + "\n" if tables else "pass = []\n"


def pass_text(entry: Pass) -> str:
    """`name{option=value}`, with the options that differ from their defaults."""
    options = ", ".join(f"{_dashed(k)}={_write(v)}" for k, v in entry.options().items())
    return f"{entry.name}{{{options}}}" if options else entry.name


def make(name: str, options: dict[str, Any]) -> Pass:
    """A pass by name with its options checked against the field types.

    Raises UsageError, with the nearest name where one is close.
    """
    cls = lookup(name)
    fields = {_dashed(f.name): f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in options.items():
        entry = fields.get(_dashed(key))
        if entry is None:
            known = ", ".join(fields) or "none"
            raise UsageError(name, f"unknown option '{key}'", did_you_mean(key, fields) or f"it has: {known}")
        if entry.name in values:
            raise UsageError(name, f"option '{_dashed(key)}' is given twice")
        values[entry.name] = _fit(value, hints[entry.name], f"{name}, option '{key}'")
    for dashed, entry in fields.items():
        has_default = entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING
        if entry.name not in values and not has_default:
            raise UsageError(name, f"option '{dashed}' is missing", f"expected {name}{{{dashed}=...}}")
    return cls(**values)


def lookup(name: str) -> type[Pass]:
    """The class of a pass, from planish itself or from a plug-in's entry point."""
    if name not in REGISTRY:
        _load_own(name)
    if name not in REGISTRY:
        load_all()
    if name not in REGISTRY:
        hint = did_you_mean(name, REGISTRY) or "'planish passes' lists them"
        raise UsageError("pipeline", f"unknown pass '{name}'", hint)
    return REGISTRY[name]


def _load_own(name: str) -> None:
    """Import the file that is called like the pass: a pipeline loads the passes that it runs, and no others."""
    folder = Path(__file__).parent
    for path in sorted(folder.rglob(f"{name.replace('-', '_')}.py")) if NAME.fullmatch(name) else ():
        place = path.relative_to(folder).with_suffix("")
        importlib.import_module(".".join(("", *place.parts)), __package__)


def load_all() -> None:
    """Register the passes of planish itself and those of every plug-in."""
    from .builtin import PASSES  # the passes import this module's neighbours

    for entry in PASSES:
        REGISTRY.setdefault(entry.name, entry)
    load_plugins()


def load_plugins() -> None:
    """Import every module that registered under the entry point group `planish.passes`."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:
            what = f"plug-in '{point.name}' ({point.value}) cannot be imported: {type(error).__name__}: {error}"
            raise UsageError("passes", what, "repair or uninstall the package") from error


def did_you_mean(word: str, known: Any) -> str:
    """`did you mean 'x'?` or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else ""


def _match_pass(text: str, at: int) -> tuple[str, dict[str, Any], int]:
    found = _PASS.match(text, at)
    if not found or (found["end"] == "," and not text[found.end() :].strip()):
        raise UsageError("pipeline", f"cannot read {text[at:].strip()!r}", "expected name{option=value, ...}, name")
    return found["name"], read_options(found["name"], found["options"] or ""), found.end()


def read_options(name: str, text: str) -> dict[str, Any]:
    """The options between the braces of `name{...}`, as they are written."""
    options: dict[str, Any] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UsageError(name, f"cannot read option {part.strip()!r}", "expected option=value")
        if key.strip() in options:
            raise UsageError(name, f"option '{key.strip()}' is given twice")
        options[key.strip()] = _read(value.strip(), f"{name}, option '{key.strip()}'")
    return options


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    escaped = False
    for at, char in enumerate(text):
        if quoted and not escaped and char == "\\":
            escaped = True
            continue
        if char == '"' and not escaped:
            quoted = not quoted
        escaped = False
        depth += (char == "[") - (char == "]") if not quoted else 0
        if char == "," and not depth and not quoted:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [p for p in parts if p.strip()]


def _read(text: str, where: str) -> Any:
    """JSON values, plus bare words for strings and `none`."""
    if text == "none":
        return None
    if text.startswith("[") and text.endswith("]"):
        return tuple(_read(part.strip(), where) for part in _split(text[1:-1]))
    try:
        return json.loads(text)
    except ValueError:
        pass
    if not _BARE_WORD.match(text):
        raise UsageError(where, f"cannot read the value {text!r}", 'quote strings: "..."')
    return text


def _write(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_write(v) for v in value)}]"
    if isinstance(value, str):
        plain = _BARE_WORD.match(value) and value.lower() not in _RESERVED
        return value if plain else json.dumps(value)
    return json.dumps(value)


def _toml_value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml_value(v) for v in value)}]"
    if value is None:
        return "{}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)


def _fit(value: Any, hint: Any, where: str) -> Any:
    """The value as its field's type. Raises UsageError where it does not fit."""
    allowed = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for kind in allowed:
        found, fitted = _fit_one(value, kind, where)
        if found:
            return fitted
    if type(None) in allowed and value == "none":
        return None
    words = [w for kind in allowed if typing.get_origin(kind) is typing.Literal for w in typing.get_args(kind)]
    hint = did_you_mean(str(value), map(str, words))
    expected = " or ".join(_type_name(kind) for kind in allowed)
    raise UsageError(where, f"{value!r} does not fit", f"expected {expected}", *filter(None, [hint]))


def _fit_one(value: Any, kind: Any, where: str) -> tuple[bool, Any]:
    """(True, the value) if it fits one plain type, a Literal, or a tuple type."""
    arguments = typing.get_args(kind)
    if kind is type(None):
        return value is None or value == {}, None
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number, float(value) if is_number else None
    if typing.get_origin(kind) is typing.Literal:
        return any(value == a and type(value) is type(a) for a in arguments), value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            return False, None
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        fits = len(hints) == len(value)
        return fits, tuple(_fit(v, h, where) for v, h in zip(value, hints, strict=True)) if fits else None
    return type(value) is kind, value


def _type_name(kind: Any) -> str:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list of {_type_name(arguments[0])}"
        return f"a list [{', '.join(map(_type_name, arguments))}]"
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, arguments))
    return {type(None): "none"}.get(kind, getattr(kind, "__name__", str(kind)))


def _dashed(name: str) -> str:
    return name.replace("_", "-")
