"""The Python of docs/quantization-accuracy.md runs as it stands, and the passes bring what the page says."""

import re
from pathlib import Path

import torch

from planish.passes.builtin import PASSES

PAGE = Path(__file__).parents[2] / "docs" / "quantization-accuracy.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^\| `([\w-]+)` \|", re.MULTILINE)


def test_the_page_is_true():
    text, names = PAGE.read_text(encoding="utf-8"), {}
    assert len(ROW.findall(text)) == 8 and set(ROW.findall(text)) <= {entry.name for entry in PASSES}
    with torch.random.fork_rng():
        for block in BLOCK.finditer(text):
            line = text[: block.start(1)].count("\n")
            exec(compile("\n" * line + block[1], PAGE.name, "exec"), names)
    scores = names["scores"]
    # 597 digits: a point is the standard error of an accuracy near 90 %.
    assert scores["float"] > 90
    assert scores["2 bits"] < scores["float"] - 20
    assert scores["corrected"] > scores["2 bits"] + 8
    assert scores["rounded"] > scores["float"] - 10
    assert scores["mixed"] > scores["float"] - 5
    returned, report = names["returned"], names["report"].steps[-1].result
    assert 1 <= len(returned) <= 4
    assert names["worst"] == report.details["table"]["rows"][0][0]
