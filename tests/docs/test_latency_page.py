"""The Python of docs/latency.md runs as it stands."""

from pathlib import Path

from pages import run_and_compare

PAGE = Path(__file__).parents[2] / "docs" / "latency.md"


def test_the_page_runs():
    assert run_and_compare(PAGE) == 0
