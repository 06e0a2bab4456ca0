"""The file that is copied to a board: manifest, code, weights and a golden pair, in one zip that is checked whole.

Nothing in it is compressed, dated or pickled: the same content gives the same bytes, and reading it runs no code.
"""

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import BundleError, UsageError
from ..ir.files import write_aside
from .manifest import MEMBER_NAME, ArraySpec, Manifest

MANIFEST = "manifest.json"
# The digest of the manifest, which holds the digests of all else: an edited manifest is found too.
SEAL = "manifest.sha256"
EPOCH = (1980, 1, 1, 0, 0, 0)
EXECUTABLES = ("runner",)
MADE_WITH = {"planish": "planish", "torch": "torch", "tvm": "apache-tvm"}
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "arm", "armv8l": "arm", "x86-64": "x86_64"}


def write_bundle(
    path: str | os.PathLike, manifest_fields: Mapping[str, Any], members: Mapping[str, bytes | Path]
) -> Path:
    """Write a bundle beside `path` and rename it. Same arguments, same bytes.

    manifest_fields: those of `Manifest`, without `format`, `versions` and `members`, which are filled in.
    members: content or file by member name; the golden pair among them (`golden_members`).
    Raises BundleError for a field, member name or golden pair that the reader would refuse.
    """
    contents = {name: m if isinstance(m, bytes) else Path(m).read_bytes() for name, m in members.items()}
    listed = {name: {"bytes": len(c), "sha256": sha256(c)} for name, c in contents.items()}
    try:
        manifest = Manifest.from_fields({**manifest_fields, "versions": made_with(), "members": listed})
        text = manifest.dumps()
    except (ValueError, TypeError) as e:
        raise BundleError(str(path), f"the manifest cannot be written: {e}") from None
    check_golden(str(path), manifest, contents)
    with write_aside(path) as draft:
        write_zip(draft, text, contents)
    return Path(path)


def write_zip(path: Path, text: bytes, contents: Mapping[str, bytes]) -> None:
    """Write a bundle whose manifest has this text."""
    first = {MANIFEST: text, SEAL: sha256(text).encode()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [*first.items(), *sorted(contents.items())]:
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system = 3  # Unix: unzip then restores the mode, and the runner runs
            info.external_attr = (stat.S_IFREG | (0o755 if name in EXECUTABLES else 0o644)) << 16
            archive.writestr(info, content)


def made_with() -> dict[str, str]:
    found = {}
    for label, package in MADE_WITH.items():
        try:
            found[label] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[label] = ""
    return found


def golden_members(inputs: Iterable[np.ndarray], outputs: Iterable[np.ndarray]) -> dict[str, bytes]:
    """The golden pair as members: raw little-endian arrays; dtype and shape stand in the manifest's specs."""
    named = {f"golden/input{i}.bin": a for i, a in enumerate(inputs)}
    named |= {f"golden/output{i}.bin": a for i, a in enumerate(outputs)}
    return {name: raw(array) for name, array in named.items()}


def raw(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, np.asarray(array).dtype.newbyteorder("<")).tobytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle, read and verified whole. Its members stay in memory, so later edits of the file change nothing."""

    path: Path
    manifest: Manifest
    contents: Mapping[str, bytes]

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Bundle":
        """Raises BundleError when the file is missing, truncated, edited, or of another format version."""
        where = str(path)
        contents = read_zip(where)
        text = contents.pop(MANIFEST, None)
        seal = contents.pop(SEAL, None)
        if text is None or seal is None:
            missing = MANIFEST if text is None else SEAL
            raise BundleError(where, f"'{missing}' is missing", "this is no bundle, or it was edited", "build it again")
        try:
            manifest = Manifest.loads(text)
        except ValueError as e:
            raise BundleError(where, f"{MANIFEST} is wrong: {e}", "build the bundle again with this version") from None
        check_members(where, manifest, contents)
        if seal != sha256(text).encode():
            raise BundleError(where, f"{MANIFEST} was edited: its sha256 differs", "build the bundle again")
        check_golden(where, manifest, contents)
        return cls(Path(path), manifest, contents)

    def read(self, member: str) -> bytes:
        """The content of a member; BundleError when there is none of that name."""
        if member not in self.contents:
            have = ", ".join(sorted(self.contents))
            raise BundleError(str(self.path), f"there is no member '{member}'", f"it has {have}")
        return self.contents[member]

    def extract(self, directory: str | os.PathLike, members: Iterable[str] | None = None) -> Path:
        """Write members (all, when none are named) below a folder; the runner is made executable."""
        root = Path(directory)
        for name in sorted(self.contents) if members is None else members:
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.read(name))
            file.chmod(0o755 if name in EXECUTABLES else 0o644)
        return root

    def golden(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The golden inputs and outputs."""
        return self.golden_arrays("input", self.manifest.inputs), self.golden_arrays("output", self.manifest.outputs)

    def golden_arrays(self, role: str, specs: Sequence[ArraySpec]) -> list[np.ndarray]:
        fixed = [spec.fixed(self.manifest.golden.extents) for spec in specs]
        named = [(spec, self.contents[f"golden/{role}{i}.bin"]) for i, spec in enumerate(fixed)]
        return [array_of(spec, content) for spec, content in named]

    def check_inputs(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inputs as C-contiguous arrays; UsageError for a wrong count, shape or dtype, or a NaN."""
        specs = self.manifest.inputs
        if len(arrays) != len(specs):
            raise UsageError(self.manifest.name, f"{len(arrays)} inputs were given", f"it takes {len(specs)}")
        extents: dict[str, int] = {}
        return [check_input(spec, np.asarray(array), extents) for spec, array in zip(specs, arrays, strict=True)]

    def check_machine(self, machine: str, features: Iterable[str]) -> None:
        """Raises BundleError when a CPU of this architecture with these features cannot run the code."""
        where, manifest = str(self.path), self.manifest
        machine = ARCHITECTURES.get(machine.lower(), machine.lower())
        if machine != manifest.architecture:
            # The emulator runs programs; a module needs TVM's runtime, which is not emulated.
            emulated = "run it on the 'emulator' device or " if manifest.kind == "c" else ""
            advice = f"{emulated}build it for target 'local'"
            raise BundleError(where, f"it was built for {manifest.architecture} and this is {machine}", advice)
        missing = sorted(set(manifest.features) - set(features))
        if missing:
            what = f"this CPU has no {', '.join(missing)}, which target '{manifest.target['name']}' needs"
            raise BundleError(where, what, "build it for an older target or for 'local'")


def read_zip(where: str) -> dict[str, bytes]:
    """All members of a file that is an uncompressed zip with plain names.

    Zip's own checksums are not looked at: every member has its sha256 in the manifest.
    """
    try:
        file = Path(where).read_bytes()
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            infos = archive.infolist()
        problem = next(filter(None, map(unusual, infos)), None) or repeated([i.filename for i in infos])
        contents = {} if problem else {info.filename: _stored(memoryview(file), info) for info in infos}
    except OSError as e:
        # zipfile seeks to offsets that the file names: a broken offset is an OSError too, with no file name.
        what = f"it cannot be read ({e.strerror or e})" if e.filename else "it is damaged"
        raise BundleError(where, what, "give the path of a bundle") from None
    except Exception as e:  # on damaged bytes zipfile raises most of Python's exceptions
        raise BundleError(where, f"it is truncated or damaged ({e})", "copy or build the bundle again") from None
    if problem:
        raise BundleError(where, problem, "this is no bundle, or it was edited", "build it again")
    return contents


def _stored(file: memoryview, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes, behind its header of thirty bytes, its name and what zip calls extra."""
    header = file[info.header_offset : info.header_offset + 30]
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = info.header_offset + 30 + name + extra
    return bytes(file[start : start + info.file_size])


def unusual(info: zipfile.ZipInfo) -> str | None:
    """What a writer of bundles would not have written, as a sentence."""
    if not MEMBER_NAME.fullmatch(info.filename):
        return f"member name {info.filename!r} is not a plain relative path"
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits:
        return f"member '{info.filename}' is compressed or encrypted"
    return None


def repeated(names: Sequence[str]) -> str | None:
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"member '{twice[0]}' is there twice" if twice else None


def check_members(where: str, manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    listed = manifest.members
    for name in sorted(listed.keys() - contents.keys()):
        raise BundleError(where, f"member '{name}' is missing", "build the bundle again")
    for name in sorted(contents.keys() - listed.keys()):
        raise BundleError(where, f"member '{name}' is not in the manifest", "build the bundle again")
    for name, member in sorted(listed.items()):
        if len(contents[name]) != member.bytes or sha256(contents[name]) != member.sha256:
            raise BundleError(where, f"member '{name}' was edited: its sha256 differs", "build the bundle again")


def check_golden(where: str, manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    """The golden pair is there and as long as the specs say."""
    for role, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for index, spec in enumerate(specs):
            name, size = f"golden/{role}{index}.bin", spec.fixed(manifest.golden.extents).nbytes
            have = len(contents[name]) if name in contents else None
            if have != size:
                what = "is missing" if have is None else f"has {have} bytes"
                raise BundleError(where, f"'{name}' {what}", f"{spec} has {size} bytes")


def array_of(spec: ArraySpec, content: bytes) -> np.ndarray:
    little = np.dtype(spec.dtype).newbyteorder("<")
    return np.frombuffer(content, little).astype(spec.dtype).reshape(spec.extents)


def check_input(spec: ArraySpec, array: np.ndarray, extents: dict[str, int]) -> np.ndarray:
    """extents collects the values of symbols, which must agree over all inputs."""
    fits = len(array.shape) == len(spec.shape) and all(
        (extents.setdefault(want, have) if isinstance(want, str) else want) == have
        for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise UsageError(spec.name, f"the input has shape {list(array.shape)}", f"the model takes {spec}")
    if array.dtype != spec.dtype:
        raise UsageError(spec.name, f"the input has dtype {array.dtype}", f"the model takes {spec}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise UsageError(spec.name, "the input holds NaN", "give finite numbers")
    return np.asarray(array, order="C")  # ascontiguousarray would give a scalar a dimension
