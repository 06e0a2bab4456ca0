"""planish inspect, run, bench and verify, and what wrong calls get."""

from dataclasses import asdict

import numpy as np
import pytest
from command_line_cases import call, document

import planish


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
        (("verify", "edited.planish"), "its sha256 differs"),
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
