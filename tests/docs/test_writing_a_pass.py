"""The page's python blocks run in order, in one module, and print what the text blocks after them say."""

import contextlib
import io
import re
import sys
import types
from pathlib import Path

import pytest

from planish.passes.base import REGISTRY

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "writing-a-pass.md"
PLUGIN = TESTS / "plugin"

_BLOCK = re.compile(r"^```(?P<kind>python|text|toml)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks():
    text = PAGE.read_text(encoding="utf-8")
    return [(m["kind"], m["body"], text[: m.start("body")].count("\n")) for m in _BLOCK.finditer(text)]


@pytest.fixture
def module():
    """A module for the page's names; passes that the page defines are gone afterwards."""
    known, made = dict(REGISTRY), types.ModuleType("writing_a_pass")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]
    REGISTRY.clear()
    REGISTRY.update(known)


def test_the_page_runs_and_prints_what_it_says(module):
    printed, compared = "", 0
    for kind, body, line in blocks():
        if kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile("\n" * line + body, PAGE.name, "exec"), module.__dict__)
            printed = output.getvalue()
        elif kind == "text":
            assert printed.rstrip() == body.rstrip(), f"the text block at line {line} is not what the code prints"
            compared += 1
    assert compared == 6


def test_the_page_shows_the_files_of_the_plug_in():
    shown = [body for kind, body, _ in blocks() if kind != "text"]
    assert (PLUGIN / "planish_merge_scalings.py").read_text(encoding="utf-8") in shown
    assert (PLUGIN / "pyproject.toml").read_text(encoding="utf-8") in shown
