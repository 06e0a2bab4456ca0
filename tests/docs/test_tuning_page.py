"""The Python of docs/tuning.md runs as it stands, in a folder of its own."""

from pathlib import Path

from pages import run_and_compare

PAGE = Path(__file__).parents[2] / "docs" / "tuning.md"


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_and_compare(PAGE) == 0
    assert (tmp_path / "tiles.json").is_file()
