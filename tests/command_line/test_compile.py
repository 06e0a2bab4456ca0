"""planish compile: what it prints and writes, and what wrong calls get."""

import numpy as np
import pytest
from command_line_cases import QUANTIZE, call, document

import planish


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


@pytest.mark.parametrize("options", [(), ("--recipe", QUANTIZE, "--data", "model.py:batches")])
def test_the_second_time_is_found(options, folder, monkeypatch):
    monkeypatch.setenv("PLANISH_CACHE", "on")
    monkeypatch.setenv("PLANISH_CACHE_DIR", str(folder / "cache"))
    made = []
    for name in ("a.planish", "b.planish"):
        words = ("compile", "model.py:net", *options, "--target", "raspberry-pi-4", "-o", name, "--json")
        made.append((document(call(*words))["seconds"].keys(), (folder / name).read_bytes()))
    assert "passes" in made[0][0] and made[0][1] == made[1][1]
    assert ("passes" in made[1][0]) == bool(options)  # what a function yields as data may be another thing each time


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
