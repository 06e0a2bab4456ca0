"""The Python of the README and of the MNIST page runs as it stands, and gives what the pages promise."""

import os
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Pages write their files here. The conftest's single thread is kept."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str) -> dict:
    """All python blocks of a page, in one namespace."""
    names: dict = {}
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], page, "exec"), names)
    return names


def test_the_readme_runs(folder, capsys):
    names = run("README.md")
    assert (folder / "model.planish").stat().st_size > 10_000
    report = names["thin"].report
    assert report.after["macs"] / report.before["macs"] == pytest.approx(0.6, rel=0.005)  # what the pass promises
    assert "vfmadd" in capsys.readouterr().out or os.uname().machine != "x86_64"


def test_the_mnist_page_keeps_the_accuracy():
    torch.manual_seed(0)
    names = run("docs/mnist.md")
    macs = [names["outcome"].before.macs, names["outcome"].steps[-1].cost.macs]
    assert macs[1] == pytest.approx(0.5 * macs[0], rel=0.005)
    assert names["trained"] > 95
    # A thousand digits: one point is the standard error of two such accuracies.
    assert names["tuned"] > names["trained"] - 2
    assert names["quantized"] > names["tuned"] - 1
