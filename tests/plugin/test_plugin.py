"""A package that is only installed, never imported by us, brings a pass through its entry point."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent

RUN = """
import torch
from torch import nn
import planish

class Model(nn.Module):
    def forward(self, x):
        return x * 2 * 3

outcome = planish.Pipeline.parse("canonicalize, {text}").run(planish.capture(Model(), torch.ones(2, 3)))
print(outcome.steps[1].result.changed, float(outcome.graph(torch.ones(1, 3))[0, 0]))
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


def run(text, *folders):
    paths = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    code = RUN.replace("{text}", text)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)


@pytest.fixture
def site(tmp_path):
    install(tmp_path / "site")
    return tmp_path / "site"


def test_the_pass_is_found_through_the_entry_point(site):
    done = run("merge-scalings", site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "6.0"]


def test_without_the_package_the_pass_is_unknown():
    done = run("merge-scalings")
    assert done.returncode != 0
    assert "unknown pass 'merge-scalings'" in done.stderr


def test_a_near_miss_finds_the_plug_ins_name(site):
    done = run("merge-scaling", site)
    assert "unknown pass 'merge-scaling'; did you mean 'merge-scalings'?" in done.stderr


def test_a_broken_package_is_named(tmp_path):
    install(tmp_path, modules=())
    done = run("merge-scalings", tmp_path)
    assert "plug-in 'merge-scalings' (planish_merge_scalings) cannot be imported: ModuleNotFoundError" in done.stderr
    assert "repair or uninstall the package" in done.stderr
