"""The bundle's file: what is written comes back, and whatever is wrong with a file gets one clear sentence."""

import io
import json
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.backends.bundle import MANIFEST, SEAL, Bundle, golden_members, sha256, write_bundle
from planish.backends.manifest import DTYPES, FORMAT, Manifest
from planish.ir.errors import BundleError, UsageError

TARGET = {"name": "board", "kind": "cpu", "triple": "aarch64-linux-gnu", "cpu": "cortex-a76", "emulator_cpu": "max",
          "features": ["asimd", "asimddp"], "lanes": 4}  # fmt: skip
SPEC = {"name": "x", "dtype": "float32", "shape": [1, 3]}
FIELDS = {"name": "tiny", "kind": "c", "entry": "model", "recipe": "fold-batch-norm", "target": TARGET,
          "inputs": [SPEC], "outputs": [{**SPEC, "name": "y", "shape": [2]}], "calls": [["k", "layer1"]],
          "report": {"int8 kernels": "0 of 52"}}  # fmt: skip
INPUT, OUTPUT = np.arange(3, dtype=np.float32).reshape(1, 3), np.array([1.5, -2], np.float32)
MEMBERS = {"weights.bin": b"weights", "runner": b"#!/bin/true\n", **golden_members([INPUT], [OUTPUT])}


@pytest.fixture
def path(tmp_path) -> Path:
    return write_bundle(tmp_path / "tiny.planish", FIELDS, MEMBERS)


def refused(path: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and text.endswith(".") and text.count("\n") == 0


def rewritten(path: Path, change, *, seal: bool = True) -> Path:
    """The same file with its members changed by `change(dict)`, its manifest sealed again."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    if seal and MANIFEST in members:
        members[SEAL] = sha256(members[MANIFEST]).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def manifest_with(**changes):
    def change(members):
        members[MANIFEST] = json.dumps({**json.loads(members[MANIFEST]), **changes}).encode()

    return change


# ---------------------------------------------------------------- what is written comes back


def test_content_comes_back(path):
    found = Bundle.open(path)
    assert found.manifest.name == "tiny" and found.manifest.architecture == "aarch64"
    assert found.manifest.features == ("asimd", "asimddp") and found.manifest.calls == (("k", "layer1"),)
    assert found.manifest.report == FIELDS["report"] and found.manifest.target == TARGET
    assert found.manifest.versions["tvm"].startswith("0.27") and found.manifest.versions["planish"]
    assert found.read("weights.bin") == b"weights"
    (given_input,), (given_output,) = found.golden()
    np.testing.assert_array_equal(given_input, INPUT)
    np.testing.assert_array_equal(given_output, OUTPUT)


def test_the_same_content_gives_the_same_bytes(path, tmp_path):
    backwards = dict(reversed(MEMBERS.items()))
    again = write_bundle(tmp_path / "again.planish", dict(reversed(FIELDS.items())), backwards)
    assert again.read_bytes() == path.read_bytes()


def test_files_are_members_too(path, tmp_path):
    (tmp_path / "w").write_bytes(b"weights")
    again = write_bundle(tmp_path / "again.planish", FIELDS, {**MEMBERS, "weights.bin": tmp_path / "w"})
    assert again.read_bytes() == path.read_bytes()


def test_extraction_makes_the_runner_a_program(path, tmp_path):
    folder = Bundle.open(path).extract(tmp_path / "out")
    assert (folder / "golden/input0.bin").read_bytes() == INPUT.tobytes()
    assert (folder / "runner").stat().st_mode & stat.S_IXUSR
    assert not (folder / "weights.bin").stat().st_mode & stat.S_IXUSR
    assert not (Bundle.open(path).extract(tmp_path / "one", ["runner"]) / "weights.bin").exists()


def test_any_unzip_reads_it(path, tmp_path):
    shutil.copy(path, tmp_path / "tiny.zip")
    script = "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])"
    subprocess.run([sys.executable, "-c", script, tmp_path / "tiny.zip", tmp_path / "u"], check=True)
    assert json.loads((tmp_path / "u" / MANIFEST).read_bytes())["format"] == FORMAT


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
extents = st.integers(0, 9)
texts = st.sampled_from(["", "a b", "conv2d_3", 'quote " and \\', "λ→😀", "fold, prune{macs=0.5}"])
specs = st.fixed_dictionaries({"name": names, "dtype": st.sampled_from(DTYPES), "shape": st.lists(extents, max_size=4)})
printable = st.text("aZ09-_.{}=\"'\\/ ,:äλ→😀", max_size=12)
counts = st.integers(0, 1 << 40)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | printable
json_values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars, max_size=3)
manifests = st.fixed_dictionaries(
    {
        "name": printable,
        "kind": st.sampled_from(["c", "tvm"]),
        "entry": names,
        "recipe": printable,
        "target": st.just(TARGET),
        "inputs": st.lists(specs, min_size=1, max_size=2),
        "outputs": st.lists(specs, min_size=1, max_size=2),
        "arena_bytes": counts,
        "workspace_bytes": counts,
        "weight_bytes": counts,
        "calls": st.lists(st.tuples(texts, texts).map(list), max_size=3),
        "report": st.dictionaries(texts, json_values, max_size=2),
        "golden": st.fixed_dictionaries({"rtol": st.floats(0, 1), "atol": st.floats(0, 1)}),
    }
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(manifests)
def test_manifests_come_back_as_they_were(fields):
    manifest = Manifest.from_fields(fields)
    assert Manifest.loads(manifest.dumps()) == manifest
    again = json.loads(manifest.dumps())
    assert all(again[key] == value for key, value in fields.items() if key != "golden")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(FIELDS)), json_values)
def test_any_value_in_a_manifest_is_taken_or_refused_with_a_sentence(field, value):
    try:
        Manifest.from_fields({**FIELDS, field: value})
    except ValueError as error:
        assert str(error) and type(error) is ValueError


# ---------------------------------------------------------------- what is wrong is refused


@cache
def good_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_bundle(Path(folder) / "tiny.planish", FIELDS, MEMBERS).read_bytes()


def same_or_refused(damaged: bytes, path: Path) -> None:
    path.write_bytes(damaged)
    try:
        found = Bundle.open(path)
    except BundleError:
        return
    assert dict(found.contents) == MEMBERS
    assert found.manifest.dumps() == expected_manifest()


@cache
def expected_manifest() -> bytes:
    with zipfile.ZipFile(io.BytesIO(good_bytes())) as archive:
        return archive.read(MANIFEST)


anywhere = settings(max_examples=200, deadline=None, derandomize=True,
                    suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


@anywhere
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_flipped_byte_is_found_or_harmless(tmp_path, where, flip):
    damaged = bytearray(good_bytes())
    damaged[int(where * len(damaged))] ^= flip
    same_or_refused(bytes(damaged), tmp_path / "damaged")


@anywhere
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(tmp_path, where):
    (tmp_path / "short").write_bytes(good_bytes()[: int(where * len(good_bytes()))])
    refused(tmp_path / "short", "truncated or damaged")


@anywhere
@given(st.binary(max_size=300))
def test_bytes_at_the_end_are_refused_or_harmless(tmp_path, tail):
    same_or_refused(good_bytes() + tail, tmp_path / "long")


def test_every_byte_of_the_directory_is_found_or_harmless(tmp_path):
    start = good_bytes().index(b"PK\x01\x02")
    for position in range(start, len(good_bytes())):
        damaged = bytearray(good_bytes())
        damaged[position] ^= 0x41
        same_or_refused(bytes(damaged), tmp_path / "damaged")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "nowhere.planish", r"it cannot be read \(No such file or directory\); give the path of a bundle")
    refused(tmp_path, r"it cannot be read \(Is a directory\)")


def test_another_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "other.zip", "'manifest.json' is missing; this is no bundle, or it was edited")


def test_an_edited_member_is_refused(path):
    edited = rewritten(path, lambda m: m.update({"weights.bin": b"weighty"}))
    refused(edited, "'weights.bin' was edited: its sha256 differs")


def test_a_missing_member_is_refused(path):
    refused(rewritten(path, lambda m: m.pop("weights.bin")), "member 'weights.bin' is missing")


def test_an_extra_member_is_refused(path):
    refused(rewritten(path, lambda m: m.update({"extra": b""})), "member 'extra' is not in the manifest")


def test_an_edited_manifest_is_refused(path):
    refused(rewritten(path, manifest_with(recipe="none"), seal=False), "manifest.json was edited: its sha256 differs")


def test_another_format_is_refused(path):
    newer = rewritten(path, manifest_with(format=FORMAT + 1))
    refused(newer, "it has format 2; this version reads 1; build the bundle again")


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "a//b", ".hidden", "a\\b", "c:", "a/", "ä"])
def test_a_name_that_is_no_plain_path_is_refused(path, name):
    refused(rewritten(path, lambda m: m.update({name: b"x"})), "is not a plain relative path")


def test_a_name_that_is_there_twice_is_refused(path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("weights.bin"), b"weights")
    refused(path, "member 'weights.bin' is there twice")


def test_a_compressed_member_is_refused(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("bomb", bytes(1000), zipfile.ZIP_DEFLATED)
    refused(path, "member 'bomb' is compressed or encrypted")


WRONG_MANIFESTS = {
    "not JSON": (b"{", "manifest.json is wrong: it is not JSON"),
    "no text": (b"\xff\xfe", "it is not JSON"),
    "deeply nested": (b"[" * 100_000, "it is not JSON"),
    "a huge number": (b'{"format": ' + b"9" * 10_000 + b"}", "it is not JSON"),
    "NaN": (b'{"format": NaN}', "NaN is not a JSON number"),
    "a list": (b"[]", "it is not a JSON object"),
    "empty": (b"{}", "the field 'entry' is missing"),
}


@pytest.mark.parametrize("case", WRONG_MANIFESTS)
def test_a_manifest_that_is_none_is_refused(path, case):
    content, message = WRONG_MANIFESTS[case]
    refused(rewritten(path, lambda m: m.update({MANIFEST: content})), message)


WRONG_FIELDS = {
    "format": ("1", "it has format '1'"),
    "name": (3, "'name' is not a text"),
    "kind": ("onnx", "'kind' is 'onnx'; known are c, tvm"),
    "entry": ("a b", "'entry' is 'a b', which is no C identifier"),
    "target": ({**TARGET, "features": "asimd"}, "'target.features' is not a list"),
    "inputs": ([], "a model has at least one input and one output"),
    "outputs": ([{**SPEC, "dtype": "object"}], "has dtype 'object'"),
    "golden": ({"rtol": -1, "atol": 0}, "'golden.rtol' is not a number of at least 0"),
    "arena_bytes": (-1, "'arena_bytes' is not a count"),
    "weight_bytes": (True, "'weight_bytes' is not a count"),
    "calls": ([["k"]], r"'calls' is not a list of \[kernel, layer\]"),
    "report": ([], "'report' is not an object"),
    "versions": ({"tvm": 0.27}, "'versions' is not a text"),
    "members": ({"a": {"bytes": 1}}, "'members' does not have exactly the fields bytes, sha256"),
    "surprise": (1, "it has the unknown field 'surprise'"),
}


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_a_field_of_the_wrong_type_is_refused(path, field):
    value, message = WRONG_FIELDS[field]
    refused(rewritten(path, manifest_with(**{field: value})), f"manifest.json is wrong: .*{message}")


WRONG_GRIDS = {
    "a scale alone": ({"scale": 0.5}, "'inputs' has a scale or a zero point alone"),
    "a zero point of 16 bits": ({"scale": 0.5, "zero_point": 300}, "'inputs.zero_point' is not an integer of 8 bits"),
    "no width": ({"scale": 0.0, "zero_point": 0}, "'inputs.scale' is not above 0"),
    "a word": ({"scale": "half", "zero_point": 0}, "'inputs.scale' is not a number of at least 0"),
}


@pytest.mark.parametrize("case", WRONG_GRIDS)
def test_integers_that_stand_for_nothing_are_refused(path, case):
    extra, message = WRONG_GRIDS[case]
    refused(rewritten(path, manifest_with(inputs=[{**SPEC, **extra}])), f"manifest.json is wrong: {message}")


def test_symbols_are_for_modules_only(path, tmp_path):
    symbolic = [{**SPEC, "shape": ["b", 3]}]
    refused(rewritten(path, manifest_with(inputs=symbolic)), "a C program cannot have the symbolic extent 'b'")
    with pytest.raises(BundleError, match="'golden' gives no value for the extent 'b'"):
        write_bundle(tmp_path / "module", {**FIELDS, "kind": "tvm", "inputs": symbolic}, MEMBERS)
    golden = {"rtol": 1e-4, "atol": 1e-5, "extents": {"b": 1}}
    fields = {**FIELDS, "kind": "tvm", "inputs": symbolic, "golden": golden}
    found = Bundle.open(write_bundle(tmp_path / "module", fields, MEMBERS))
    assert found.check_inputs([np.zeros((5, 3), np.float32)])[0].shape == (5, 3)


# ---------------------------------------------------------------- writing, inputs, machines


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    wrong = {
        "it has the unknown field 'speed'": ({**FIELDS, "speed": 1}, MEMBERS),
        "the manifest cannot be written: Out of range float": ({**FIELDS, "report": {"error": float("nan")}}, MEMBERS),
        "the manifest cannot be written: .*set is not JSON": ({**FIELDS, "report": {"ops": {1}}}, MEMBERS),
        "member name '../x' is not a plain relative path": (FIELDS, {**MEMBERS, "../x": b""}),
        r"'golden/output0.bin' is missing; y : float32\[2\] has 8 bytes": (
            FIELDS, {k: v for k, v in MEMBERS.items() if k != "golden/output0.bin"}),
        "'golden/input0.bin' has 4 bytes": (FIELDS, {**MEMBERS, "golden/input0.bin": bytes(4)}),
    }  # fmt: skip
    for message, (fields, members) in wrong.items():
        with pytest.raises(BundleError, match=message):
            write_bundle(tmp_path / "out.planish", fields, members)
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_checked(path):
    found = Bundle.open(path)
    good = np.zeros((1, 3), np.float32)
    wrong = {
        "tiny: 2 inputs were given; it takes 1": [good, good],
        r"x: the input has shape \[3, 1\]; the model takes x : float32\[1,3\]": [good.T],
        r"x: the input has shape \[3\]": [good[0]],
        "x: the input has dtype float64": [good.astype(np.float64)],
        "x: the input holds NaN; give finite numbers": [good * np.float32(np.nan)],
    }
    for message, arrays in wrong.items():
        with pytest.raises(UsageError, match=message):
            found.check_inputs(arrays)
    strided = np.zeros((3, 2), np.float32).T[:1]
    assert found.check_inputs([strided])[0].flags.c_contiguous


def test_machines_are_checked(path):
    found = Bundle.open(path)
    found.check_machine("aarch64", {"asimd", "asimddp", "sve"})
    found.check_machine("ARM64", {"asimd", "asimddp"})
    with pytest.raises(BundleError, match="built for aarch64 and this is x86_64; run it on the 'emulator' device"):
        found.check_machine("x86_64", {"avx2"})
    with pytest.raises(BundleError, match="this CPU has no asimddp, which target 'board' needs; build it for an older"):
        found.check_machine("aarch64", {"asimd"})


def test_an_unknown_member_is_named(path):
    with pytest.raises(BundleError, match=r"there is no member 'model.so'; it has golden/input0.bin, golden/output0"):
        Bundle.open(path).read("model.so")


def test_integers_are_little_endian():
    big = np.array([1, 256], ">i4")
    assert golden_members([big], []) == {"golden/input0.bin": struct.pack("<2i", 1, 256)}
