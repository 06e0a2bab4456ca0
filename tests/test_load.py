"""load(): what was saved answers as before, and what was tampered with is refused in one sentence."""

import json
import zipfile
from typing import Any

import models
import pytest
import torch

import planish
from planish.backends.bundle import MANIFEST, SEAL, sha256
from planish.ir.errors import BundleError, UsageError

# The compiled and the loaded model are the same machine code; PyTorch sums in another order.
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A model compiled for this machine, and its bundle."""
    compiled = planish.compile(models.vgg(), torch.randn(1, 3, 16, 16))
    return compiled, compiled.save(tmp_path_factory.mktemp("bundles") / "here.planish")


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The bundle of the same model for a Raspberry Pi 4."""
    compiled = planish.compile(models.vgg(), torch.randn(1, 3, 16, 16), target="raspberry-pi-4")
    return compiled.save(tmp_path_factory.mktemp("bundles") / "board.planish")


def rewritten(path, tmp_path, change):
    """A copy of a bundle whose manifest went through `change`, sealed as if it had been written so."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(members[MANIFEST])
    change(document)
    members[MANIFEST] = json.dumps(document).encode()
    members[SEAL] = sha256(members[MANIFEST]).encode()
    target = tmp_path / "rewritten.planish"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def test_a_loaded_model_gives_the_same_bits(here):
    compiled, path = here
    loaded, x = planish.load(path), torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(x), compiled(x))
    assert loaded.report == compiled.report.untimed()
    assert loaded.manifest.recipe == compiled.report.recipe
    assert "input_1 : float32[1,3,16,16]" in repr(loaded)


def test_threads_change_no_bit(here):
    x = torch.randn(1, 3, 16, 16)
    with planish.load(here[1], threads=1) as one, planish.load(here[1], threads=2) as two:
        assert torch.equal(one(x), two(x))


def test_a_board_s_bundle_runs_on_the_emulator(here, board):
    x = torch.randn(1, 3, 16, 16)
    with planish.load(board, device="emulator") as loaded:
        torch.testing.assert_close(loaded(x), here[0](x), **TOLERANCE)


def test_a_c_program_for_this_machine_runs_in_the_process(here, tmp_path):
    name = next((n for n in ("x86-64-v4", "x86-64-v3", "aarch64") if planish.Target.get(n).runs_here()), None)
    assert name is not None, "this machine has none of the processors that code is made for"
    x = torch.randn(1, 3, 16, 16)
    compiled = planish.compile(models.vgg(), x, target=name)
    loaded = planish.load(compiled.save(tmp_path / "c.planish"))
    torch.testing.assert_close(loaded(x), here[0](x), **TOLERANCE)


def test_several_outputs_are_a_tuple(tmp_path):
    class Two(torch.nn.Module):
        def forward(self, x):
            return x + 1, x * 2

    x = torch.randn(2, 8)
    first, second = planish.load(planish.compile(Two(), x).save(tmp_path / "two.planish"))(x)
    assert torch.equal(first, x + 1)
    assert torch.equal(second, x * 2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "0 inputs were given; it takes 1"),
        ((torch.zeros(1, 3, 16, 15),), "the input has shape [1, 3, 16, 15]"),
        ((torch.zeros(1, 3, 16, 16, dtype=torch.float64),), "the input has dtype float64"),
        ((torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16),), "an input has dtype bfloat16"),
        ((torch.full((1, 3, 16, 16), float("nan")),), "the input holds NaN"),
        (([[1.0]],), "an input is a float"),
    ],
)
def test_inputs_are_checked(here, inputs, message):
    loaded = planish.load(here[1])
    with pytest.raises(UsageError) as caught:
        loaded(*inputs)
    assert message in str(caught.value)


def test_a_bundle_for_another_processor_is_refused(board):
    with pytest.raises(BundleError, match=r"it was built for aarch64 and this is x86_64|it was built for x86_64"):
        planish.load(board)


def test_a_bundle_that_needs_more_than_this_processor_has_is_refused(here, tmp_path):
    def ask_for_more(document):
        document["target"]["features"].append("quantum")

    with pytest.raises(BundleError, match="this CPU has no quantum, which target 'local' needs"):
        planish.load(rewritten(here[1], tmp_path, ask_for_more))


def test_a_bundle_of_another_version_is_refused(here, tmp_path):
    with pytest.raises(BundleError, match="it has format 2; this version reads 1"):
        planish.load(rewritten(here[1], tmp_path, lambda document: document.update(format=2)))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_bundle_is_refused(here, tmp_path, share):
    content = here[1].read_bytes()
    (tmp_path / "cut.planish").write_bytes(content[: int(share * len(content))])
    with pytest.raises(BundleError, match="damaged"):
        planish.load(tmp_path / "cut.planish")


def test_an_edited_bundle_is_refused(here, tmp_path):
    content = bytearray(here[1].read_bytes())
    at = content.rindex(b"\x7fELF") + 5000
    content[at] ^= 1
    (tmp_path / "edited.planish").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.so' was edited|damaged"):
        planish.load(tmp_path / "edited.planish")


def test_other_files_and_devices_are_refused(here, tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        planish.load(tmp_path / "absent.planish")
    with pytest.raises(UsageError, match=r"unknown device 'emulatr'; did you mean 'emulator'\?"):
        planish.load(here[1], device="emulatr")
    with pytest.raises(UsageError, match="0 threads were asked for"):
        planish.load(here[1], threads=0)


def test_a_report_of_another_form_is_no_report(here, tmp_path):
    path = rewritten(here[1], tmp_path, lambda document: document.update(report={"note": "by hand"}))
    assert planish.load(path).report is None
