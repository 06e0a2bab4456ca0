"""No kernel touches a byte outside its buffers: they run in a process of their own, between pages without access."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("guarded.py")


def test_kernels_stay_inside_their_buffers():
    """The script first sees a byte outside kill a process."""
    path = os.pathsep.join([str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, str(SCRIPT)], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "stayed inside" in done.stdout
