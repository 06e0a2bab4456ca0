"""The Python of docs/compensation.md runs as it stands, and compensation brings what the page says."""

import re
from pathlib import Path

import torch

from planish.passes.prune.compensate import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "compensation.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^\| `([\w-]+)` \|", re.MULTILINE)


def test_the_page_is_true(capsys):
    text, names = PAGE.read_text(encoding="utf-8"), {}
    assert ROW.findall(text) == list(METHODS)
    with torch.random.fork_rng():
        for block in BLOCK.finditer(text):
            line = text[: block.start(1)].count("\n")
            exec(compile("\n" * line + block[1], PAGE.name, "exec"), names)
    whole, cut, compensated = names["whole"], names["cut"], names["compensated"]
    # 597 digits: a point is the standard error of an accuracy near 90 %.
    assert whole > 90
    assert cut < whole - 10
    assert compensated["bias"] > cut + 5
    assert compensated["reconstruct"] > whole - 4
    assert compensated["bias, reconstruct, batch-norm"] > whole - 4
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names["report"]["layers"]) == 3
    assert all("reconstruct" in line for line in lines)
