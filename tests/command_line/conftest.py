"""A folder with a model's file, and bundles made from it."""

import os
import sys

import numpy as np
import pytest
from command_line_cases import SOURCE, call, document


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder but for a model's file, as the current one."""
    (tmp_path / "model.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "model", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Bundles of the same model: net.planish for this machine, pi.planish for a board, and an input."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "model.py").write_text(SOURCE)
    here = os.getcwd()
    os.chdir(folder)
    try:
        made = document(call("compile", "model.py:net", "--json"))
        board = document(call("compile", "model.py:net", "--target", "raspberry-pi-4", "-o", "pi.planish", "--json"))
    finally:
        os.chdir(here)
    np.savez(folder / "x.npz", input_1=np.random.default_rng(0).standard_normal((1, 3, 8, 8)))
    return folder, made, board
