"""The program as a whole: lists, help, JSON, errors, interrupts."""

import importlib.metadata
import json
import signal
import subprocess
import sys
import time

import pytest
from command_line_cases import call, document

import planish
from planish.doctor import packages


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
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == {"model.py"}  # Python keeps what it compiled


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
