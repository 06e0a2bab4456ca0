"""docs/command-line.md: every command on the page is run, and what the page shows is printed, in its order."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import planish
from planish.__main__ import app

PAGE = Path(str(planish.__file__)).parent / "docs" / "command-line.md"
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
# Sizes and times differ from machine to machine: a number is any number.
NUMBER = re.compile(r"\d[\d.,]*")


def blocks(kind):
    return [found["text"] for found in BLOCK.finditer(PAGE.read_text(encoding="utf-8")) if found["kind"] == kind]


def examples():
    """(command, the lines shown below it), in order."""
    found = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def words(text):
    """What counts when a line is compared: no spacing, any number."""
    return NUMBER.sub("0", " ".join(text.split()))


def run(command):
    """(exit code, what is printed)."""
    program, *rest = shlex.split(command)
    if program == "planish":
        result = CliRunner().invoke(app, rest, env={"COLUMNS": "160"})
        return result.exit_code, result.output
    assert program == "python"
    done = subprocess.run([sys.executable, *rest], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_the_page_is_true(tmp_path, monkeypatch):
    (source,) = blocks("python")
    (tmp_path / "model.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLANISH_CACHE", "on")
    monkeypatch.setenv("PLANISH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert len(examples()) > 10
    for command, shown in examples():
        status, output = run(command)
        refused = any(line.startswith("planish: ") for line in shown)
        assert status == (2 if refused else 0), f"{command}\n{output}"
        printed = iter(list(map(words, output.splitlines())))
        for line in shown:
            assert any(words(line) in other for other in printed), f"{command}\nlacks: {line}\n{output}"
