"""The Python of the pruning page runs as it stands, and does what the page promises."""

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "pruning.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_page_runs():
    text = PAGE.read_text(encoding="utf-8")
    names: dict = {}
    printed = []
    for block in _BLOCK.finditer(text):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile("\n" * text[: block.start(1)].count("\n") + block[1], PAGE.name, "exec"), names)
        printed.append(output.getvalue())
    target, gap, floor, fenced = printed
    assert target.startswith("macs 0.") and target.rstrip().endswith("True")
    reached = float(target.split()[1])
    assert abs(reached / 0.5 - 1) <= 0.005
    assert "no choice of channels comes within 0.5 % of macs 0.6; the nearest reachable shares are 0.52" in gap
    assert "lower 'round-to' from 16" in gap
    shares = re.search(r"macs (\S+) of 0.6, params (\S+) of 0.5, peak-memory (\S+) of 0.9", gap)
    assert shares
    over = [float(share) / asked - 1 for share, asked in zip(shares.groups(), (0.6, 0.5, 0.9), strict=True)]
    assert abs(max(over)) <= 0.0055  # half a percent, and the rounding of what is printed
    assert floor == "True\n"
    assert "graph output" in fenced
