"""The page's python blocks run in order, in one module, and print what the text blocks after them say."""

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "sparsity.md"
_BLOCK = re.compile(r"^```(?P<kind>python|text)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_page_runs_and_prints_what_it_says():
    text, names, printed, compared = PAGE.read_text(encoding="utf-8"), {"__name__": "sparsity_page"}, "", 0
    for block in _BLOCK.finditer(text):
        line = text[: block.start("body")].count("\n")
        if block["kind"] == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile("\n" * line + block["body"], PAGE.name, "exec"), names)
            printed = output.getvalue()
        else:
            assert printed == block["body"], f"the text block at line {line} is not what the code prints"
            compared += 1
    assert compared == 3
