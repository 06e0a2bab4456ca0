"""docs/boards.md: its commands, those of the board on the emulator."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import planish
from planish.__main__ import app
from planish.backends.bundle import Bundle

DOCS = Path(str(planish.__file__)).parent / "docs"
EMULATOR = shutil.which("qemu-arm") or shutil.which("qemu-arm-static")


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(EMULATOR is None, reason="qemu-user is not installed")
def test_the_commands_of_the_page(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(blocks("command-line.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    here, board = blocks("boards.md", "console")
    for command in here.splitlines():
        program, *words = shlex.split(command)
        result = CliRunner().invoke(app, words)
        assert program == "planish" and result.exit_code == 0, result.output
    Bundle.open(tmp_path / "net.planish").extract(tmp_path / "unpacked")
    for command in board.splitlines():
        words = [str(EMULATOR), "-cpu", "cortex-a7", *shlex.split(command)]
        done = subprocess.run(words, cwd=tmp_path / "unpacked", capture_output=True, text=True, timeout=60, check=True)
        assert '"return_code": 0' in done.stdout
    wanted, got = (np.fromfile(tmp_path / "unpacked" / name, np.float32) for name in ("golden/output0.bin", "y.bin"))
    # PyTorch sums in another order: a few float32 roundings of numbers of order 1.
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
