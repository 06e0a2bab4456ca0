"""Bundles on this machine and on both emulators: PyTorch's numbers, and a sentence for what cannot run."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tvm

from planish.backends import emulator
from planish.backends.bundle import Bundle, golden_members, write_bundle
from planish.backends.device import Device
from planish.backends.session import run_child
from planish.backends.target import Target
from planish.backends.tvm.build import CompiledModel as TvmModel
from planish.backends.tvm.build import relax_passes, save_library, tvm_target
from planish.ir.errors import BundleError, PlanishError, UsageError

NATIVE, BOARD, NEWER_BOARD, BOARD_32 = "x86-64-v3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-2"
# Without QEMU (no root to install it) the board is emulated by Unicorn alone.
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
EMULATORS = [*(["emulator:qemu"] if QEMU else []), "emulator:unicorn"]
# float32 against PyTorch's float64: sums of at most 96 products of magnitude 1, one rounding of 6e-8 for each.
RTOL, ATOL = 1e-4, 1e-5


def with_target(bundle: Bundle, **changes) -> Bundle:
    """The bundle with another target row in its manifest."""
    target = {**bundle.manifest.target, **changes}
    return replace(bundle, manifest=replace(bundle.manifest, target=target))


def without(bundle: Bundle, *names: str) -> Bundle:
    return replace(bundle, contents={n: c for n, c in bundle.contents.items() if n not in names})


@pytest.fixture(scope="session")
def module_bundle(net, tmp_path_factory) -> Bundle:
    """The network as a module for TVM's runtime."""
    target = Target.get(NATIVE)
    executable = tvm.compile(net.relax(), target=tvm_target(target), relax_pipeline=relax_passes())
    folder = tmp_path_factory.mktemp("module")
    library = save_library(TvmModel(executable), folder / "model.so", target)
    outputs = [output.astype(np.float32) for output in net.outputs]
    spec = lambda name, a: {"name": name, "dtype": str(a.dtype), "shape": list(a.shape)}  # noqa: E731
    fields = {"name": "module", "kind": "tvm", "entry": "main", "recipe": "", "target": asdict(target),
              "inputs": [spec("x", net.inputs[0])],
              "outputs": [spec(f"y{i}", output) for i, output in enumerate(outputs)]}  # fmt: skip
    members = {"model.so": library, **golden_members(net.inputs, outputs)}
    return Bundle.open(write_bundle(folder / "module.planish", fields, members))


# ---------------------------------------------------------------- numbers


def check_numbers(device: Device, bundle: Bundle, net) -> None:
    flipped = [net.inputs[0][:, ::-1]]  # other than the golden input, and not contiguous
    assert not np.allclose(device.run(bundle, flipped)[0], net.outputs[0], atol=0.1)
    for got, wanted in zip(device.run(bundle, net.inputs), net.outputs, strict=True):
        assert got.dtype == np.float32 and got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=RTOL, atol=ATOL)
    test = device.verify(bundle)
    assert test.passed and 0 < test.max_abs_error < ATOL and test.detail == "within 0.0001 relative and 1e-05 absolute"


@pytest.mark.parametrize("threads", [1, 2])
def test_local_in_process(bundle, net, threads):
    check_numbers(Device.get("local", threads=threads), bundle(NATIVE), net)


def test_local_by_the_runner(bundle, net):
    check_numbers(Device.get("local"), without(bundle(NATIVE), "model.so"), net)


@pytest.mark.parametrize("threads", [1, 2])
def test_local_by_tvms_runtime(module_bundle, net, threads):
    check_numbers(Device.get("local", threads=threads), module_bundle, net)


@pytest.mark.parametrize("name", EMULATORS)
@pytest.mark.parametrize("target", [BOARD, NEWER_BOARD])
def test_emulated_boards(bundle, net, name, target):
    check_numbers(Device.get(name), bundle(target), net)


def test_all_emulators_give_the_same_bytes(bundle, net):
    every = [Device.get(name).run(bundle(BOARD), net.inputs) for name in ["emulator", *EMULATORS]]
    for outputs in every[1:]:
        for a, b in zip(every[0], outputs, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("target", "threads"), [(BOARD, 3), (BOARD_32, 1), (BOARD_32, 3), (NATIVE, 1)])
def test_what_qemu_alone_emulates(bundle, net, target, threads):
    device = Device.get("emulator:qemu", threads=threads)
    if shutil.which(f"qemu-{Target.get(target).machine}"):
        check_numbers(device, bundle(target), net)
    else:
        with pytest.raises(UsageError, match="there is no qemu here"):
            device.verify(bundle(target))


def test_sessions_of_one_bundle_do_not_share_memory(bundle, net):
    device = Device.get("local")
    with device.load(bundle(NATIVE)) as one, device.load(bundle(NATIVE)) as two:
        before = one.run(net.inputs)
        two.run([net.inputs[0] + 1])
        np.testing.assert_array_equal(one.run(net.inputs)[0], before[0])


def test_a_session_gives_its_memory_back(bundle, net):
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("model.so")

    before = mapped()
    with Device.get("local", threads=2).load(bundle(NATIVE)) as one:
        assert mapped() > before
    assert mapped() == before
    with pytest.raises(PlanishError, match="small: the session was closed; load the bundle again"):
        one.run(net.inputs)


def test_a_wrong_golden_pair_fails_the_self_test(bundle, net):
    good = bundle(NATIVE)
    wrong = np.frombuffer(good.read("golden/output1.bin"), np.float32) + np.float32([0, 0.5, 0, 0, 0])
    test = Device.get("local").verify(replace(good, contents={**good.contents, "golden/output1.bin": wrong.tobytes()}))
    assert not test.passed and abs(test.max_abs_error - 0.5) < 1e-3
    assert test.detail == "output 1: 1 of 5 values are off"


def test_a_nan_fails_the_self_test(bundle):
    good = bundle(NATIVE)
    nans = np.full(5, np.nan, np.float32).tobytes()
    test = Device.get("local").verify(replace(good, contents={**good.contents, "golden/output1.bin": nans}))
    assert not test.passed and np.isnan(test.max_abs_error)


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(("name", "target"), [("local", NATIVE), *((e, BOARD) for e in EMULATORS)])
def test_bench_reports_times_and_memory(bundle, name, target):
    timing = Device.get(name).bench(bundle(target), runs=5, warmup=1)
    assert timing.device == name and timing.runs == 5 and timing.threads == 1
    assert 0 < timing.min_ms <= timing.p50_ms <= timing.p90_ms < 1000
    # The static runner alone; QEMU itself counts under QEMU, the whole stack under Unicorn.
    assert timing.peak_rss_kib is not None and 100 < timing.peak_rss_kib < 128 << 10
    assert ("emulated" in timing.note) == (name != "local")


def test_bench_of_a_module_runs_in_this_process(module_bundle):
    timing = Device.get("local").bench(module_bundle, runs=3)
    assert timing.peak_rss_kib is None and 0 < timing.min_ms <= timing.p90_ms


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("emulato", "unknown device 'emulato'; did you mean 'emulator'?"),
        ("gpu7", "unknown device 'gpu7'; known are local, emulator, emulator:qemu, emulator:unicorn"),
        ("ssh://pi@board", "device 'ssh://pi@board' is not supported by this version"),
        ("rpc://rack:9190/pi", "device 'rpc://rack:9190/pi' is not supported by this version"),
    ],
)
def test_unknown_devices_are_refused(name, message):
    with pytest.raises(UsageError) as caught:
        Device.get(name)
    assert message in str(caught.value)


def test_a_foreign_bundle_is_refused_here(bundle):
    with pytest.raises(BundleError, match="built for aarch64 and this is x86_64"):
        Device.get("local").run(bundle(BOARD), [])


def test_a_missing_feature_is_refused_before_the_first_instruction(bundle, net):
    needy = with_target(bundle(NATIVE), features=["avx2", "avx10"])
    for call in (lambda d: d.run(needy, net.inputs), lambda d: d.bench(needy), lambda d: d.verify(needy)):
        with pytest.raises(BundleError, match="this CPU has no avx10, which target 'x86-64-v3' needs"):
            call(Device.get("local"))


def test_another_system_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(UsageError, match="this is Darwin, and bundles run on Linux"):
        Device.get("local").verify(bundle(NATIVE))


def test_a_wrong_input_is_refused(bundle):
    with pytest.raises(UsageError, match=r"the input has shape \[1, 2\]; the model takes x : float32\[1,3,12,12\]"):
        Device.get("emulator").run(bundle(BOARD), [np.zeros((1, 2), np.float32)])


def test_modules_are_not_emulated(module_bundle):
    with pytest.raises(UsageError, match="'module' is a module for TVM's runtime; the emulator runs C bundles"):
        Device.get("emulator").verify(module_bundle)


def test_a_target_without_an_emulated_core_is_refused(bundle):
    with pytest.raises(UsageError, match="no emulated core runs code for target 'x86-64-v4'"):
        Device.get("emulator").verify(with_target(bundle(NATIVE), name="x86-64-v4", emulator_cpu=""))


def test_cuda_modules_need_a_device(module_bundle, monkeypatch):
    cuda = tvm.cuda
    monkeypatch.setattr(tvm, "cuda", lambda index: cuda(index + 63))  # no machine has so many
    with pytest.raises(UsageError, match="there is no CUDA device here"):
        Device.get("local").verify(with_target(module_bundle, kind="cuda"))


def test_a_runner_that_breaks_is_reported(bundle, net):
    shell = without(bundle(NATIVE), "model.so")
    killed = replace(shell, contents={**shell.contents, "runner": b"#!/bin/sh\nkill -ILL $$\n"})
    with pytest.raises(PlanishError, match="the runner of 'small' failed: it was ended by SIGILL; exit code -4"):
        Device.get("local").run(killed, net.inputs)
    short = replace(shell, contents={**shell.contents, "weights.bin": b"short"})
    with pytest.raises(UsageError, match=r"does not have .* bytes; it belongs to another model or is truncated"):
        Device.get("local").run(short, net.inputs)


def test_threads_that_cannot_be_are_refused(bundle, net):
    with pytest.raises(UsageError, match="0 threads were asked for; give at least 1"):
        Device.get("local", threads=0)
    with pytest.raises(UsageError, match="99 threads cannot be started"):
        Device.get("local", threads=99).run(bundle(NATIVE), net.inputs)
    with pytest.raises(UsageError, match="Unicorn emulates one thread; give threads=1 or apt install qemu-user"):
        Device.get("emulator:unicorn", threads=2).run(bundle(BOARD), net.inputs)
    with pytest.raises(UsageError, match="0 runs after 3 were asked for"):
        Device.get("local").bench(bundle(NATIVE), runs=0)


# ---------------------------------------------------------------- which emulator


def test_the_environment_chooses_the_engine(bundle, monkeypatch):
    monkeypatch.setenv("PLANISH_EMULATOR", "unicorn")
    assert Device.get("emulator").verify(bundle(BOARD)).device == "emulator:unicorn"
    monkeypatch.setenv("PLANISH_EMULATOR", "bochs")
    with pytest.raises(UsageError, match="unknown engine 'bochs'; known are qemu, unicorn"):
        Device.get("emulator").verify(bundle(BOARD))


def test_unicorn_steps_in_where_there_is_no_qemu(bundle, monkeypatch, tmp_path):
    monkeypatch.delenv("PLANISH_EMULATOR", raising=False)
    assert Device.get("emulator").verify(bundle(BOARD)).device == EMULATORS[0]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Device.get("emulator").verify(bundle(BOARD)).device == "emulator:unicorn"
    with pytest.raises(UsageError, match="there is no qemu here that emulates aarch64; apt install qemu-user"):
        Device.get("emulator:qemu").verify(bundle(BOARD))


@pytest.mark.parametrize("name", ["qemu-aarch64", "qemu-aarch64-static"])
def test_both_builds_of_qemu_are_taken(monkeypatch, tmp_path, name):
    (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = emulator.emulator_command(asdict(Target.get(BOARD)), "qemu")
    assert command == ("qemu", [str(tmp_path / name), "-cpu", "cortex-a72"])


def test_without_an_emulator_the_message_says_what_to_install(bundle, monkeypatch, tmp_path):
    monkeypatch.delenv("PLANISH_EMULATOR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(emulator.importlib.util, "find_spec", lambda name: None)
    message = "there is no QEMU or Unicorn here that emulates aarch64; apt install qemu-user; or pip install unicorn"
    with pytest.raises(UsageError, match=message):
        Device.get("emulator").verify(bundle(BOARD))
    with pytest.raises(UsageError, match=r"emulates x86_64; apt install qemu-user\."):
        Device.get("emulator").verify(bundle(NATIVE))


def test_unicorn_is_not_asked_for_a_matrix_multiply(monkeypatch, tmp_path):
    target = asdict(Target.get("graviton3"))
    message = "Unicorn has no i8mm, which target 'graviton3' needs; use QEMU; apt install qemu-user"
    with pytest.raises(UsageError, match=message):
        emulator.emulator_command(target, "unicorn")
    monkeypatch.delenv("PLANISH_EMULATOR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=message):
        emulator.emulator_command(target)


def test_a_board_without_the_matrix_multiply_is_refused(bundle):
    """A Raspberry Pi 5 has the dot product and no i8mm."""
    board = bundle("graviton3")
    features = Target.get("raspberry-pi-5").features
    with pytest.raises(UsageError, match="this CPU has no i8mm, which target 'graviton3' needs; build it for an older"):
        board.check_machine("aarch64", features)
    board.check_machine("aarch64", [*features, "i8mm"])


def test_a_32_bit_board_needs_its_fused_multiply_add(bundle):
    """A Cortex-A9 is ARMv7 with NEON too, and has VFPv3."""
    board, older = bundle(BOARD_32), ["half", "thumb", "fastmult", "vfp", "edsp", "neon", "vfpv3", "tls", "vfpd32"]
    with pytest.raises(UsageError, match="this CPU has no idiva, vfpv4, which target 'raspberry-pi-2' needs; build it"):
        board.check_machine("armv7l", older)
    board.check_machine("armv7l", [*older, "vfpv4", "idiva", "idivt"])
    with pytest.raises(UsageError, match="it was built for arm and this is aarch64"):
        board.check_machine("aarch64", ["asimd"])


def test_unicorn_is_not_asked_for_32_bits():
    target = asdict(Target.get(BOARD_32))
    with pytest.raises(UsageError, match=r"there is no unicorn here that emulates arm; apt install qemu-user\."):
        emulator.emulator_command(target, "unicorn")


# ---------------------------------------------------------------- ends of child processes


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """Where temporary folders appear, to see that they go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


SLEEPER = b'#!/bin/sh\nsleep 100 &\necho $! > "$(dirname "$0")/../child"\nwait\n'


def ended(process: int) -> bool:
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if "\nState:\tZ" in Path(f"/proc/{process}/status").read_text():
            return True
        time.sleep(0.02)
    return False


def test_a_time_out_ends_the_whole_process_group(bundle, net, temporary):
    slow = without(bundle(NATIVE), "model.so")
    slow = replace(slow, contents={**slow.contents, "runner": SLEEPER})
    with pytest.raises(PlanishError, match=r"runner: it did not end within 0\.5 seconds; give a longer timeout"):
        Device.get("local", timeout=0.5).run(slow, net.inputs)
    assert ended(int((temporary / "child").read_text()))
    assert [p.name for p in temporary.iterdir()] == ["child"]


INTERRUPTED = """
import os, signal, sys, threading
from pathlib import Path
from planish.backends.session import run_child
def interrupt():
    while not Path(sys.argv[1]).exists(): pass
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    run_child(["sh", "-c", 'echo $$ > "$0.part"; mv "$0.part" "$0"; sleep 100', sys.argv[1]], None)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_the_child(tmp_path):
    mark = tmp_path / "started"
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, mark], capture_output=True, text=True, timeout=60)
    assert done.stdout == "interrupted\n", done.stderr
    assert ended(int(mark.read_text()))


def test_a_program_that_is_not_there_is_reported():
    with pytest.raises(PlanishError, match="/nowhere/runner: it cannot be started"):
        run_child(["/nowhere/runner"], None)


def test_temporary_folders_are_removed(bundle, net, temporary):
    for name, target in (("local", NATIVE), *((e, BOARD) for e in EMULATORS)):
        Device.get(name).verify(bundle(target))
        Device.get(name).bench(bundle(target), runs=1)
    assert list(temporary.iterdir()) == []
