"""The command line: what each command prints and writes, and what wrong calls get."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
from typer.testing import CliRunner

import planish
from planish.__main__ import app
from planish.doctor import packages

SOURCE = '''
import sys
import time

import torch
from torch import nn


def net():
    """A conv, a batch norm, a pointwise conv and a head."""
    print("printed by the model's file")
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU()
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)), torch.randn(1, 3, 8, 8)


def spoiled():
    model, inputs = net()
    with torch.no_grad():
        model[0].weight[1, 2] = float("nan")
    return model, inputs


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x


def branch():
    return Branch(), torch.randn(2, 3)


def slow():
    print("working", file=sys.stderr, flush=True)
    time.sleep(60)


def batches():
    for seed in range(2):
        yield torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def nothing():
    return []


def nans():
    return [torch.full((4, 3, 8, 8), float("nan"))]


def small_images():
    return [torch.zeros(4, 3, 8, 7)]
'''
QUANTIZE = "fold-batch-norm, insert-fake-quant, calibrate"


def call(*words, env=None):
    return CliRunner().invoke(app, list(map(str, words)), env=env)


def document(result):
    """The one JSON document that stdout is."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder but for a model's file, as the current one."""
    (tmp_path / "model.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "model", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Bundles of the same model: net.planish for this machine, pi.planish for a board, and an input."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "model.py").write_text(SOURCE)
    here = os.getcwd()
    os.chdir(folder)
    try:
        made = document(call("compile", "model.py:net", "--json"))
        board = document(call("compile", "model.py:net", "--target", "raspberry-pi-4", "-o", "pi.planish", "--json"))
    finally:
        os.chdir(here)
    np.savez(folder / "x.npz", input_1=np.random.default_rng(0).standard_normal((1, 3, 8, 8)))
    return folder, made, board


# ---------------------------------------------------------------- compile


def test_compile_writes_a_bundle_named_after_the_model(built):
    folder, made, board = built
    size = (folder / "net.planish").stat().st_size
    assert made["written"] == {"net.planish": size}
    assert board["written"] == {"pi.planish": (folder / "pi.planish").stat().st_size}
    assert (made["target"], board["target"]) == ("local", "raspberry-pi-4")
    assert made["seconds"]["capture"] > 0
    assert sorted(p.name for p in folder.iterdir() if p.name[0] == ".") == []


def test_compile_prints_the_report(folder):
    result = call("compile", "model.py:net", "--recipe", QUANTIZE, "--data", "model.py:batches", "-o", "q.planish")
    assert result.exit_code == 0, result.output
    for words in ("parameters", "3 of 3, computed in float", "insert-fake-quant", "wrote q.planish"):
        assert words in result.stdout
    assert "Warning" not in result.stderr


def test_compile_writes_onnx_too(folder):
    result = document(call("compile", "model.py:net", "--onnx", "net.onnx", "--json"))
    import onnxruntime

    session = onnxruntime.InferenceSession("net.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    (wanted,) = session.run(None, {session.get_inputs()[0].name: x})
    import torch

    # Two compilers, float32, five layers: rounding only.
    np.testing.assert_allclose(planish.load("net.planish")(torch.from_numpy(x)), wanted, rtol=1e-4, atol=1e-5)
    assert set(result["written"]) == {"net.planish", "net.onnx"}


def test_compile_reads_onnx_and_writes_it_in_the_integers_of_a_runtime(folder):
    document(call("compile", "model.py:net", "--onnx", "net.onnx", "--json"))
    words = ("--recipe", f"{QUANTIZE}, lower-integers", "--data", "model.py:batches", "--onnx", "q.onnx")
    result = document(call("compile", "net.onnx", *words, "--for", "onnxruntime-x86", "-o", "q.planish", "--json"))
    assert "activations=uint8" in result["recipe"]
    import onnx

    zero_points = {t.data_type for t in onnx.load("q.onnx").graph.initializer if not t.dims}
    assert {onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT} == zero_points


def test_compile_takes_a_pipeline_from_toml(folder):
    (folder / "thin.toml").write_text('[[pass]]\nname = "prune-channels"\nratio = 0.5\nround-to = 1\n')
    made = document(call("compile", "model.py:net", "--recipe", "thin.toml", "--batch", "dynamic", "--json"))
    assert made["recipe"] == "prune-channels{ratio=0.5, round-to=1}"
    assert made["after"]["params"] < 0.6 * made["before"]["params"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("model.py:net", "--recipe", "fold-batchnorm"),
            "unknown pass 'fold-batchnorm'; did you mean 'fold-batch-norm'?",
        ),
        (("model.py:net", "--recipe", "prune-channels{ration=0.5}"), "unknown option 'ration'; did you mean 'ratio'?"),
        (("model.py:net", "--recipe", "prune-channels{"), "cannot read"),
        (("model.py:net", "--recipe", "no.toml"), "there is no file 'no.toml'"),
        (
            ("model.py:net", "--recipe", "calibrate", "--data", "model.py:batches"),
            "calibrate: it needs 'fake-quant'; add",
        ),
        (("model.py:net", "--recipe", QUANTIZE), "calibrate: no data was given; add --data"),
        (("model.py:net", "--recipe", QUANTIZE, "--data", "model.py:nothing"), "calibrate: the loader is empty"),
        (("model.py:net", "--recipe", QUANTIZE, "--data", "model.py:nans"), "holds NaN or infinity"),
        (("model.py:net", "--recipe", QUANTIZE, "--data", "model.py:small_images"), "is f32[4,3,8,7]; expected"),
        (("model.py:net", "--recipe", QUANTIZE, "--data", "absent.npz"), "there is no file 'absent.npz'"),
        (("model.py:net", "--recipe", "prune-channels{ratio=1}"), "leaves 0; lower 'ratio'"),
        (
            ("model.py:net", "--target", "rasberry-pi-4"),
            "unknown target 'rasberry-pi-4'; did you mean 'raspberry-pi-4'?",
        ),
        (
            ("model.py:net", "--target", "raspberry-pi-4", "--batch", "dynamic"),
            "'dynamic' was given for raspberry-pi-4",
        ),
        (("model.py:net", "--batch", "0"), "--batch: '0' was given"),
        (
            ("model.py:net", "--for", "openvino"),
            "--for: 'openvino' runs ONNX files, and none is written; add --onnx FILE",
        ),
        (
            ("model.py:net", "--onnx", "q.onnx", "--for", "openvion"),
            "unknown runtime 'openvion'; did you mean 'openvino'?",
        ),
        (("model.py:net", "--mean", "1"), "no data was given; add --data"),
        (("model.py:net", "--data", "model.py:batches", "--std", "a"), "--std: cannot read 'a'"),
        (("model.py:net", "-o", "."), "it is a folder"),
        (("model.py:spoiled",), "weight '0.weight'"),
        (("model.py:branch",), "capture, model.py:26: `if x.sum() > 0:` cannot be captured"),
        (("model.py:nett",), "'model.py' has no 'nett'; did you mean 'net'?"),
        (("absent.pt2",), "there is no file 'absent.pt2'"),
        (("model.py:net", "--fule", "3"), "compile: no such option: --fule; did you mean '--fuel'?"),
        (("model.py:net", "--fuel", "x"), "compile: invalid value for '--fuel': "),
        ((), "compile: missing argument 'MODEL'; see 'planish compile --help'"),
    ],
)
def test_a_wrong_call_exits_2_with_one_line_and_writes_nothing(folder, words, message):
    before = sorted(folder.iterdir())
    result = call("compile", *words)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("planish: ")]
    assert message in line
    assert (result.exit_code, "Traceback" in result.stderr) == (2, False)
    assert sorted(p for p in folder.iterdir() if p.name != "__pycache__") == before


def test_work_that_fails_exits_1_and_writes_nothing(folder):
    words = ("model.py:net", "--recipe", QUANTIZE, "--data", "model.py:batches", "--onnx", "q.onnx")
    result = call("compile", *words)
    assert result.exit_code == 1
    assert "planish: " in result.stderr
    assert not list(folder.glob("*.onnx")) + list(folder.glob("*.planish")) + list(folder.glob(".*"))


# ---------------------------------------------------------------- inspect


def test_inspect_shows_each_layer_of_a_bundle(built):
    folder, made, _ = built
    result = call("inspect", folder / "net.planish")
    shown = result.stdout
    for layer in made["layers"]:
        assert f"{layer['node']} " in shown
        assert layer["kernel"] in shown
    assert "tile" in shown
    assert "input_1 : float32[1,3,8,8]" in shown
    found = document(call("inspect", folder / "pi.planish", "--json"))
    assert found["manifest"]["report"]["layers"][0]["instruction"] != ""
    assert found["manifest"]["members"]["runner"]["bytes"] > 0
    assert found["bytes"] == (folder / "pi.planish").stat().st_size


def test_inspect_shows_text_and_cost_of_a_model(folder):
    result = call("inspect", "model.py:net", "--text", "--cost")
    assert "%conv2d = conv2d(%input_1, 0.weight[16,3,3,3], padding=[1, 1]) : f32[b,16,8,8]" in result.stdout
    # 8 * 8 pixels * 16 channels * 27 weights; 8 * 8 * 24 * 16; 24 * 5.
    assert "27,648" in result.stdout
    found = document(call("inspect", "model.py:net", "--json"))
    assert found["cost"]["macs"] == 64 * 16 * 27 + 64 * 24 * 16 + 24 * 5
    assert found["cost"]["params"] == 16 * 27 + 2 * 16 + 24 * 17 + 5 * 25
    assert sum(row["macs"] for row in found["by_op"]) == found["cost"]["macs"]


def test_inspect_reads_saved_graphs(folder):
    import torch

    graph = planish.capture(torch.nn.Linear(4, 2), torch.randn(2, 4))
    graph.save("linear.graph")
    assert document(call("inspect", "linear.graph", "--json"))["text"] == graph.text()


# ---------------------------------------------------------------- run, bench, verify


def test_run_writes_outputs(built, tmp_path):
    import torch

    folder, _, _ = built
    result = document(call("run", folder / "net.planish", "-i", folder / "x.npz", "-o", tmp_path / "y.npz", "--json"))
    with np.load(folder / "x.npz") as arrays:
        x = torch.from_numpy(arrays["input_1"].astype(np.float32))
    wanted = planish.load(folder / "net.planish")(x).numpy()
    with np.load(tmp_path / "y.npz") as arrays:
        np.testing.assert_array_equal(arrays["linear"], wanted)
    assert result["outputs"][0]["largest_at"] == [0, int(wanted.argmax())]


def test_run_on_the_emulator_agrees(built, tmp_path):
    folder, _, _ = built
    for bundle, device, output in (("net.planish", "local", "a.npy"), ("pi.planish", "emulator", "b.npy")):
        words = (folder / bundle, "--input", folder / "x.npz", "--device", device, "-o", tmp_path / output)
        assert call("run", *words).exit_code == 0
    # Two processors' orders of summation in float32.
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"), rtol=1e-4, atol=1e-5)


def test_bench_gives_times(built):
    folder, _, _ = built
    timing = document(call("bench", folder / "net.planish", "--runs", "5", "--json"))
    assert timing["runs"] == 5
    assert 0 < timing["min_ms"] <= timing["p50_ms"] <= timing["p90_ms"]
    assert timing["note"] == ""


def test_an_emulated_time_is_no_board_s_time(built):
    folder, _, _ = built
    result = call("bench", folder / "pi.planish", "--device", "emulator", "--runs", "1")
    assert "emulated: it says nothing about the time on a board" in result.stdout
    assert "peak memory" in result.stdout


def test_verify_runs_the_self_test(built):
    folder, _, _ = built
    assert document(call("verify", folder / "net.planish", "--json"))["passed"] is True
    result = call("verify", folder / "pi.planish", "--device", "emulator")
    assert (result.exit_code, "self-test       passed" in result.stdout) == (0, True)


def test_verify_exits_1_where_the_answers_are_off(built, tmp_path):
    from planish.backends.bundle import Bundle, write_bundle

    bundle = Bundle.open(built[0] / "net.planish")
    written_anew = ("format", "versions", "members")
    fields = {key: value for key, value in asdict(bundle.manifest).items() if key not in written_anew}
    other = np.frombuffer(bundle.read("golden/output0.bin"), "<f4") + np.float32(0.1)
    write_bundle(tmp_path / "off.planish", fields, {**bundle.contents, "golden/output0.bin": other.tobytes()})
    result = call("verify", tmp_path / "off.planish")
    assert result.exit_code == 1
    assert "FAILED: output 0: 5 of 5 values are off" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "net.planish", "-i", "absent.npy"), "there is no file 'absent.npy'"),
        (("run", "net.planish", "-i", "nan.npy"), "the input holds NaN"),
        (("run", "net.planish", "-i", "wrong.npy"), "the input has shape [1, 3, 8, 7]"),
        (("run", "net.planish", "-i", "bytes.npy"), "an array has dtype uint8; expected float32"),
        (("run", "net.planish", "-i", "x.npz", "-o", "y.txt"), "cannot be written to a '.txt' file"),
        (("run", "net.planish", "-i", "x.npz", "--device", "emulator"), "module for TVM's runtime"),
        (("run", "net.planish", "-i", "x.npz", "--device", "here"), "unknown device 'here'"),
        (("run", "net.planish", "-i", "x.npz", "--threads", "0"), "0 threads were asked for"),
        (("run", "net.planish"), "run: missing option '--input'"),
        (("run", "pi.planish", "-i", "x.npz"), "it was built for aarch64 and this is"),
        (("bench", "net.planish", "--runs", "0"), "0 runs"),
        (("bench", "cut.planish"), "truncated or damaged"),
        (("verify", "edited.planish"), "damaged"),
        (("verify", "absent.planish"), "cannot be read"),
        (("inspect", "cut.planish"), "truncated or damaged"),
        (("passes", "fold-batchnorm"), "did you mean 'fold-batch-norm'?"),
        (("compil",), "no such command 'compil'. Did you mean 'compile'?"),
    ],
)
def test_wrong_calls_about_bundles_exit_2(built, monkeypatch, words, message):
    folder, _, _ = built
    monkeypatch.chdir(folder)
    content = (folder / "net.planish").read_bytes()
    (folder / "cut.planish").write_bytes(content[:-3000])
    (folder / "edited.planish").write_bytes(content[:9000] + bytes([content[9000] ^ 1]) + content[9001:])
    np.save("nan.npy", np.full((1, 3, 8, 8), np.nan, np.float32))
    np.save("wrong.npy", np.zeros((1, 3, 8, 7), np.float32))
    np.save("bytes.npy", np.zeros((1, 3, 8, 8), np.uint8))
    result = call(*words)
    assert message in result.stderr
    assert (result.exit_code, result.stdout) == (2, "")


# ---------------------------------------------------------------- passes, targets, doctor


def test_passes_lists_every_pass(built):
    listed = {row["name"]: row for row in document(call("passes", "--json"))}
    assert {"canonicalize", "fold-batch-norm", "prune-channels", "insert-fake-quant", "calibrate"} <= set(listed)
    assert listed["calibrate"]["needs"] == ["data"]
    assert listed["calibrate"]["requires"] == ["fake-quant"]
    options = {option["name"]: option for option in listed["prune-channels"]["options"]}
    assert options["ratio"]["type"] == "float | none"
    assert options["ratio"]["default"] == "none"
    assert "share of channels" in options["ratio"]["about"]


def test_passes_shows_one_pass_whole():
    shown = call("passes", "fold-batch-norm").stdout
    assert all(line.strip() in shown for line in ("before:", "after:", "skips:", "provides"))


def test_targets_lists_every_row():
    listed = {row["name"]: row for row in document(call("targets", "--json"))}
    assert set(listed) == set(planish.Target.names())
    assert listed["raspberry-pi-5"]["features"] == ["asimd", "asimddp", "fphp", "asimdhp"]
    assert listed["local"]["runs_here"] == "yes"
    assert listed["cuda-sm90"]["runs_here"] == "no"


def test_doctor_is_content_with_this_machine():
    found = document(call("doctor", "--json"))
    assert found["healthy"] is True
    assert {"packages", "processor", "TVM", "linkers", "emulator", "CUDA"} <= {c["area"] for c in found["checks"]}


def test_doctor_says_what_to_install(monkeypatch):
    found = importlib.metadata.version
    versions = {"apache-tvm-ffi": "0.1.15.post2"}
    monkeypatch.setattr(importlib.metadata, "version", lambda package: versions.get(package) or found(package))
    monkeypatch.setattr("planish.doctor.CHECKS", (packages,))
    result = call("doctor", "--json")
    assert result.exit_code == 1
    (check,) = [check for check in json.loads(result.stdout)["checks"] if check["what"] == "apache-tvm-ffi"]
    assert (check["status"], check["detail"]) == ("missing", "it is 0.1.15.post2, expected ==0.1.14.post1")
    assert check["cure"] == "pip install 'apache-tvm-ffi==0.1.14.post1'"


# ---------------------------------------------------------------- the frame


def planish_process(*words, **options):
    command = [sys.executable, "-m", "planish", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_json_is_all_that_stdout_holds(folder):
    """A model's file, C code and a child process print while the command works; all of that goes to stderr."""
    (folder / "native.py").write_text(
        "import ctypes, os\nfrom model import net as made\n\ndef net():\n"
        "    ctypes.CDLL(None).printf(b'printed by C\\n')\n    os.system('echo printed by a child')\n"
        "    return made()\n"
    )
    child = planish_process("inspect", "native.py:net", "--json", cwd=folder)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert json.loads(out)["cost"]["macs"] > 0
    for printed in ("printed by C", "printed by a child", "printed by the model's file"):
        assert printed in err


def test_errors_are_one_document_too():
    result = call("compile", "absent.pt2", "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["exit_code"]) == (2, 2)
    assert f"planish: {error['message']}\n" == result.stderr


def test_a_defect_is_one_line_and_a_traceback_on_demand(built, monkeypatch):
    def fail():
        raise KeyError("a hole in the program")

    monkeypatch.setattr("planish.listing.targets_view", fail)
    plain, debug = call("targets"), call("targets", env={"PLANISH_DEBUG": "1"})
    assert (plain.exit_code, debug.exit_code) == (1, 1)
    assert plain.stderr.startswith("planish: KeyError: 'a hole in the program'; this is a defect of Planish")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_exits_130_and_leaves_nothing(folder, number):
    child = planish_process("compile", "model.py:slow", "-o", "slow.planish", cwd=folder)
    assert child.stderr is not None
    while "working" not in child.stderr.readline():
        assert child.poll() is None
    time.sleep(0.1)
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "planish: interrupted" in err
    assert "Traceback" not in err
    assert sorted(p.name for p in folder.iterdir()) == ["model.py"]


def test_help_and_targets_start_without_torch():
    code = (
        "import sys, planish.__main__ as m\ntry: m.app(sys.argv[1:])\nfinally: print({'torch', 'tvm'} & {*sys.modules})"
    )
    for words in (["--help"], ["targets"], ["compile", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_without_a_word_help_is_shown():
    result = call()
    assert "compile" in result.output
    assert result.exit_code == 2
    assert "planish: " not in result.stderr


def test_version_is_the_package_s():
    assert call("--version").stdout == f"planish {importlib.metadata.version('planish')}\n"


def test_the_names_of_the_package_are_there():
    for name in planish.__all__:
        assert getattr(planish, name) is not None
    assert set(planish.__all__) <= set(dir(planish))
    with pytest.raises(AttributeError, match="has no attribute 'compil'"):
        planish.compil  # noqa: B018
