"""What a bundle says about itself: the manifest's fields, their types, and their JSON form."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

FORMAT = 1
KINDS = ("c", "tvm")
DTYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
TARGET_TEXT = ("name", "kind", "triple", "cpu", "emulator_cpu")
MEMBER_NAME = re.compile(r"(?!\.)[\w.+-]+(/(?!\.)[\w.+-]+)*", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# Longer than any model's manifest, short enough to parse at once.
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class ArraySpec:
    """An input or output of compiled code: numpy's dtype name, and extents; a str is a symbol (kind "tvm" only).

    scale, zero_point: of integers that stand for real values, scale * (q - zero_point); None of all others.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    scale: float | None = None
    zero_point: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"'{self.name}' has dtype '{self.dtype}'; known are {', '.join(DTYPES)}")

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.extents) * self.itemsize

    @property
    def extents(self) -> tuple[int, ...]:
        """The shape, of which every extent must be a number."""
        return tuple(int(extent) for extent in self.shape)

    def fixed(self, extents: Mapping[str, int]) -> "ArraySpec":
        """The same with its symbols replaced."""
        return replace(self, shape=tuple(extents[e] if isinstance(e, str) else e for e in self.shape))

    def __str__(self) -> str:
        array = f"{self.name} : {self.dtype}[{','.join(map(str, self.shape))}]"
        return array if self.scale is None else f"{array} = {self.scale:.9g} * (q - {self.zero_point})"


@dataclass(frozen=True)
class Golden:
    """How near the self-test must come: |got - want| <= atol + rtol * |want|, exact for integers.

    extents: the values of symbolic extents in the golden pair.
    """

    rtol: float = 1e-4
    atol: float = 1e-5
    extents: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The fields of manifest.json. Raises ValueError with a sentence when one is of the wrong type or value.

    kind       "c": static C program with a ready runner; "tvm": a library for TVM's runtime
    entry      "c": the prefix of the program's C symbols; "tvm": the VM function to call
    target     a Target row as a dict; its `features` are what the CPU must have, as /proc/cpuinfo names them
    calls      [kernel, layer] in the order in which they run
    report     whatever the compiler wants to tell, as JSON
    versions   of the packages that made the bundle
    """

    name: str
    kind: str
    entry: str
    recipe: str
    target: dict[str, Any]
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    golden: Golden = Golden()
    arena_bytes: int = 0
    workspace_bytes: int = 0
    weight_bytes: int = 0
    calls: tuple[tuple[str, str], ...] = ()
    report: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    versions: dict[str, str] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def triple(self) -> str:
        return self.target["triple"]

    @property
    def architecture(self) -> str:
        return self.triple.split("-")[0]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(self.target["features"])

    def dumps(self) -> bytes:
        document = asdict(self)
        for edge in ("inputs", "outputs"):  # most arrays are real numbers, and say nothing of scales
            document[edge] = [{k: v for k, v in row.items() if v is not None} for row in document[edge]]
        return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def loads(cls, text: bytes) -> "Manifest":
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has {len(text)} bytes; a manifest has at most {MOST_BYTES}")
        try:
            raw = json.loads(text.decode(), parse_constant=refuse_constant)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"it is not JSON ({e})") from None
        return cls.from_fields(raw)

    @classmethod
    def from_fields(cls, raw: Any) -> "Manifest":
        """Check JSON-able values and build the manifest of them."""
        want(isinstance(raw, Mapping), "it is not a JSON object")
        version = raw.get("format", FORMAT)
        want(version == FORMAT and type(version) is int, f"it has format {version!r}; this version reads {FORMAT}")
        known = {f.name for f in fields(cls)}
        want(not set(raw) - known, f"it has the unknown field '{first(set(raw) - known)}'")
        required = {"name", "kind", "entry", "recipe", "target", "inputs", "outputs"}
        want(required <= set(raw), f"the field '{first(required - set(raw))}' is missing")
        manifest = cls(**{key: READERS[key](key, value) for key, value in raw.items()})
        check_whole(manifest)
        return manifest


def check_whole(manifest: Manifest) -> None:
    """What concerns several fields at once."""
    specs = [*manifest.inputs, *manifest.outputs]
    symbols = {e for s in specs for e in s.shape if isinstance(e, str)}
    want(manifest.kind == "tvm" or not symbols, f"a C program cannot have the symbolic extent '{first(symbols)}'")
    unknown = symbols - set(manifest.golden.extents)
    want(not unknown, f"'golden' gives no value for the extent '{first(unknown)}'")
    want(bool(manifest.inputs and manifest.outputs), "a model has at least one input and one output")


def want(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def first(names: set) -> str:
    return min(map(str, names), default="")


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


# ------------------------------------------------- one reader per field: (field name, JSON value) -> checked value


def text(key: str, value: Any) -> str:
    want(isinstance(value, str), f"'{key}' is not a text")
    want(value.isprintable() or key == "recipe", f"'{key}' holds characters that cannot be printed")
    return value


def one_of(*choices: str) -> Callable[[str, Any], str]:
    def read(key: str, value: Any) -> str:
        want(value in choices, f"'{key}' is {value!r}; known are {', '.join(choices)}")
        return value

    return read


def identifier(key: str, value: Any) -> str:
    want(bool(IDENTIFIER.fullmatch(text(key, value))), f"'{key}' is {value!r}, which is no C identifier")
    return value


def count(key: str, value: Any) -> int:
    want(type(value) is int and 0 <= value < 1 << 62, f"'{key}' is not a count")
    return value


def number(key: str, value: Any) -> float:
    want(type(value) in (int, float) and 0 <= value < math.inf, f"'{key}' is not a number of at least 0")
    return float(value)


def mapping(key: str, value: Any) -> dict:
    want(isinstance(value, Mapping) and all(isinstance(k, str) for k in value), f"'{key}' is not an object")
    return dict(value)


def sequence(key: str, value: Any) -> list:
    want(isinstance(value, list | tuple), f"'{key}' is not a list")
    return list(value)


def exact_keys(key: str, value: Any, names: set[str]) -> dict:
    value = mapping(key, value)
    want(set(value) == names, f"'{key}' does not have exactly the fields {', '.join(sorted(names))}")
    return value


def target_row(key: str, value: Any) -> dict:
    row = mapping(key, value)
    missing = {*TARGET_TEXT, "features"} - set(row)
    want(not missing, f"'{key}' has no '{first(missing)}'")
    checked = {name: text(f"{key}.{name}", row[name]) for name in TARGET_TEXT}
    features = [text(f"{key}.features", f) for f in sequence(f"{key}.features", row["features"])]
    return {**row, **checked, "features": features}


def extent(key: str, value: Any) -> int | str:
    return identifier(key, value) if isinstance(value, str) else count(key, value)


def specs(key: str, value: Any) -> tuple[ArraySpec, ...]:
    found = []
    for item in sequence(key, value):
        row = dict[str, Any]({"scale": None, "zero_point": None, **mapping(key, item)})
        row = exact_keys(key, row, {"name", "dtype", "shape", "scale", "zero_point"})
        shape = tuple(extent(f"{key}.shape", e) for e in sequence(f"{key}.shape", row["shape"]))
        affine = affine_of(key, row["scale"], row["zero_point"])
        found.append(ArraySpec(text(f"{key}.name", row["name"]), text(f"{key}.dtype", row["dtype"]), shape, *affine))
    return tuple(found)


def affine_of(key: str, scale: Any, zero_point: Any) -> tuple[float | None, int | None]:
    """Both or neither."""
    if scale is None or zero_point is None:
        want(scale is zero_point, f"'{key}' has a scale or a zero point alone")
        return None, None
    want(type(zero_point) is int and -128 <= zero_point <= 255, f"'{key}.zero_point' is not an integer of 8 bits")
    want(number(f"{key}.scale", scale) > 0, f"'{key}.scale' is not above 0")
    return float(scale), zero_point


def golden(key: str, value: Any) -> Golden:
    row = {"extents": {}, **mapping(key, value)}
    row = exact_keys(key, row, {"rtol", "atol", "extents"})
    extents = {k: count(f"{key}.extents", v) for k, v in mapping(f"{key}.extents", row["extents"]).items()}
    return Golden(number(f"{key}.rtol", row["rtol"]), number(f"{key}.atol", row["atol"]), extents)


def calls(key: str, value: Any) -> tuple[tuple[str, str], ...]:
    rows = [sequence(key, row) for row in sequence(key, value)]
    want(all(len(row) == 2 for row in rows), f"'{key}' is not a list of [kernel, layer]")
    return tuple((text(key, kernel), text(key, layer)) for kernel, layer in rows)


def versions(key: str, value: Any) -> dict[str, str]:
    return {name: text(key, version) for name, version in mapping(key, value).items()}


def members(key: str, value: Any) -> dict[str, Member]:
    found = {}
    for name, item in mapping(key, value).items():
        row = exact_keys(key, item, {"bytes", "sha256"})
        want(bool(MEMBER_NAME.fullmatch(name)), f"member name {name!r} is not a plain relative path")
        digest = text(f"{key}.sha256", row["sha256"])
        want(bool(SHA256.fullmatch(digest)), f"the sha256 of member '{name}' is not a digest")
        found[name] = Member(count(f"{key}.bytes", row["bytes"]), digest)
    return found


READERS: dict[str, Callable[[str, Any], Any]] = {
    "format": count,
    "name": text,
    "kind": one_of(*KINDS),
    "entry": identifier,
    "recipe": text,
    "target": target_row,
    "inputs": specs,
    "outputs": specs,
    "golden": golden,
    "arena_bytes": count,
    "workspace_bytes": count,
    "weight_bytes": count,
    "calls": calls,
    "report": mapping,
    "versions": versions,
    "members": members,
}
