"""docs/onnx.md: its blocks run in order, in a folder of their own, and print what the text blocks after them say."""

from pathlib import Path

from onnx_cases import needs_exact_onnxruntime
from pages import run_and_compare

import planish

PAGE = Path(str(planish.__file__)).parent / "docs" / "onnx.md"


@needs_exact_onnxruntime
def test_the_page_runs_and_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_and_compare(PAGE) == 4
