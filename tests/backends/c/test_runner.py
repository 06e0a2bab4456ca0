"""The runner on the board: its files, its self-test, its line of JSON, and what it says to a wrong call."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest


@pytest.fixture
def board(bundle, tmp_path):
    """A bundle unpacked as a user does it."""
    return bundle("x86-64-v3").extract(tmp_path / "unpacked")


def call(board, *options):
    return subprocess.run([board / "runner", *options], capture_output=True, text=True, timeout=60)


def test_the_self_test_passes_where_the_bundle_was_unpacked(board):
    done = call(board, "--self-test")
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and facts["self_test"] == "passed"
    # float32 against the golden float64 outputs: some hundred roundings of 6e-8 of values around 1.
    assert 0 <= facts["max_abs_error"] < 1e-5
    assert 100 < facts["peak_rss_kib"] < 64 << 10


@pytest.mark.parametrize("value", [np.float32(1e-2), np.float32(np.nan)])
def test_the_self_test_fails_for_other_numbers(board, value):
    golden = board / "golden/output1.bin"
    changed = np.fromfile(golden, np.float32)
    changed[2] += value
    changed.tofile(golden)
    done = call(board, "--self-test")
    facts = json.loads(done.stdout)
    assert done.returncode == 1 and facts["self_test"] == "failed" and facts["return_code"] == 0
    assert facts["max_abs_error"] is None if np.isnan(value) else abs(facts["max_abs_error"] - 1e-2) < 1e-4


def test_tolerances_are_options(board):
    golden = board / "golden/output1.bin"
    (np.fromfile(golden, np.float32) + np.float32(1e-2)).tofile(golden)
    assert call(board, "--self-test", "--atol", "0.02").returncode == 0
    assert call(board, "--self-test", "--atol", "0.005", "--rtol", "0").returncode == 1


def test_it_runs_from_any_folder(board, tmp_path):
    shutil.move(board / "golden", tmp_path / "pair")
    done = subprocess.run(
        [board / "runner", "--self-test", "--golden", tmp_path / "pair"], cwd="/", capture_output=True, timeout=60
    )
    assert done.returncode == 0


X = ["--input", "golden/input0.bin"]
WRONG = {
    "an unknown option": (["--sweep", "1"], "option '--sweep' is unknown; known are --input"),
    "no value": (["--input"], "option '--input' has no value"),
    "no input": (["--runs", "2"], "0 input files were given; the model takes 1"),
    "one of two outputs": ([*X, "--output", "y"], "1 output files were given; the model gives 2"),
    "no such file": (["--input", "nowhere.bin"], "'nowhere.bin' cannot be opened"),
    "too short a file": (["--input", "golden/output0.bin"], "does not have 1728 bytes; it belongs to another model"),
    "too long a file": (["--input", "weights.bin"], "does not have 1728 bytes"),
    "no count": ([*X, "--runs", "many"], "'--runs many' is no count of at least 1"),
    "no run": ([*X, "--runs", "0"], "'--runs 0' is no count of at least 1"),
    "too many threads": ([*X, "--threads", "99"], "99 threads cannot be started; at most 16"),
    "no tolerance": (["--self-test", "--rtol", "-1"], "'--rtol -1' is no tolerance"),
    "other weights": (["--self-test", "--weights", "golden/input0.bin"], "does not have"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_refused(board, case):
    options, message = WRONG[case]
    done = subprocess.run([board / "runner", *options], cwd=board, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert re.match(r"model: .*" + re.escape(message), done.stderr)
