"""No kernel touches a byte outside its buffers: they run in a process of their own, between pages without access."""

import os
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("guarded.py")


def run(*options: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_kernels_stay_inside_their_buffers():
    done = run()
    assert done.returncode == 0, done.stderr
    assert "stayed inside" in done.stdout


def test_a_byte_outside_would_be_seen():
    assert run("--fault").returncode == -signal.SIGSEGV
