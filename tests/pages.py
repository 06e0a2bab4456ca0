"""Pages whose text blocks are what the Python above them prints."""

import contextlib
import io
import re
from pathlib import Path

_BLOCK = re.compile(r"^```(?P<kind>python|text)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)


def run_and_compare(page: Path) -> int:
    """Run all python blocks of a page in one namespace; returns how many text blocks were compared."""
    text, names, printed, compared = page.read_text(encoding="utf-8"), {"__name__": page.stem}, "", 0
    for block in _BLOCK.finditer(text):
        line = text[: block.start("body")].count("\n")
        if block["kind"] == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile("\n" * line + block["body"], page.name, "exec"), names)
            printed = output.getvalue()
        else:
            assert printed == block["body"], f"the text block at line {line} is not what the code prints"
            compared += 1
    return compared
