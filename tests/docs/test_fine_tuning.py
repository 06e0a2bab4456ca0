"""docs/fine-tuning.md: its python blocks run in order and print what the text blocks after them say."""

from pathlib import Path

import torch
from pages import run_and_compare
from train_cases import batches, resnet_graph

import planish

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fine-tuning.md"


def test_the_page_runs_and_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_and_compare(PAGE) == 7


def test_the_recipe_runs():
    pipeline = planish.Pipeline.parse(str(ROOT / "passes" / "recipes" / "prune-and-finetune.toml"))
    graph = resnet_graph()
    outcome = pipeline.run(graph, planish.Context(data=batches(16, (3, 16, 16), 10)))
    assert outcome.steps[-1].cost.macs / outcome.before.macs <= 0.5025
    assert outcome.steps[2].result.details["epochs"] == 10
    assert torch.isfinite(outcome.graph(batches(4, (3, 16, 16), 10)[0][0])).all()
