"""The page's python blocks run in order, in one module, and print what the text blocks after them say."""

from pathlib import Path

from pages import run_and_compare

PAGE = Path(__file__).parents[2] / "docs" / "half-precision.md"


def test_the_page_runs_and_prints_what_it_says():
    assert run_and_compare(PAGE) == 1
