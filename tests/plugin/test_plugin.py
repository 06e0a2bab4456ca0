"""A package that is only installed, never imported by us, brings a pass through its entry point."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import planish
from planish.ir.errors import UsageError

HERE = Path(__file__).parent

RUN = """
import torch
from torch import nn
import planish
from planish.ir.errors import UsageError

class Model(nn.Module):
    def forward(self, x):
        return x * 2 * 3

outcome = planish.Pipeline.parse("canonicalize, merge-scalings").run(planish.capture(Model(), torch.ones(2, 3)))
print(outcome.steps[1].result.changed, float(outcome.graph(torch.ones(1, 3))[0, 0]))
try:
    planish.Pipeline.parse("merge-scaling")
except UsageError as error:
    print(error)
"""


def install(folder, modules=("planish_merge_scalings.py",)):
    """What pip would put into site-packages: the module, and metadata with the entry points of pyproject.toml."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = project["name"].replace("-", "_")
    info = folder / f"{name}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module in modules:
        shutil.copy(HERE / module, folder)


def test_the_pass_is_found_through_the_entry_point(tmp_path):
    """In a process of its own, where nobody imports the package; a near miss finds its name."""
    install(tmp_path)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    computed, refused = done.stdout.splitlines()
    assert computed.split() == ["1", "6.0"]
    assert "unknown pass 'merge-scaling'; did you mean 'merge-scalings'?" in refused


def test_without_the_package_the_pass_is_unknown():
    with pytest.raises(UsageError, match="unknown pass 'merge-scalings'"):
        planish.Pipeline.parse("merge-scalings")


def test_a_broken_package_is_named(tmp_path, monkeypatch):
    install(tmp_path, modules=())
    monkeypatch.syspath_prepend(tmp_path)
    broken = r"plug-in 'merge-scalings' \(planish_merge_scalings\) cannot be imported: ModuleNotFoundError"
    with pytest.raises(UsageError, match=f"{broken}.*repair or uninstall the package"):
        planish.Pipeline.parse("merge-scalings")
