"""The Python of docs/importance.md runs as it stands, its table names every criterion, and its forecasts come true."""

import re
from pathlib import Path

import pytest
import torch

from planish.passes.prune.score.criteria import CRITERIA
from planish.passes.prune.score.normalizers import NORMALIZERS
from planish.passes.prune.select.order import SCOPES

PAGE = Path(__file__).parents[2] / "docs" / "importance.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^\| `([\w-]+)` \|", re.MULTILINE)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the page's blocks leave, and the folder that they wrote into."""
    folder, names = tmp_path_factory.mktemp("importance"), {}
    text = PAGE.read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        for block in BLOCK.finditer(text):
            line = text[: block.start(1)].count("\n")
            exec(compile("\n" * line + block[1], PAGE.name, "exec"), names)
    return names, folder


def test_the_tables_name_every_criterion_and_normalizer():
    assert ROW.findall(PAGE.read_text(encoding="utf-8")) == [
        *("l1", "l2", "lamp", "geometric-median", "batch-norm", "activation", "apoz", "taylor", "fisher", "hessian"),
        "random",
        *NORMALIZERS,
    ]
    assert set(ROW.findall(PAGE.read_text(encoding="utf-8"))) == {*CRITERIA, *NORMALIZERS}
    assert {"global", "isomorphic"} <= set(SCOPES)


def test_criteria_that_see_the_loss_forecast_what_removal_costs(page):
    """Rank correlations of 104 channels: one by chance has a standard deviation of 0.1 across, 0.11 inside layers."""
    forecast = page[0]["forecast"]
    for criterion, least in (("taylor", 0.4), ("fisher", 0.7), ("hessian", 0.6)):
        inside, across = forecast[criterion]
        assert inside > 0.35 and across > least, criterion
    assert all(abs(value) < 0.4 for value in forecast["random"])
    assert all(forecast["fisher"][1] > forecast[other][1] for other in ("l1", "l2", "lamp", "activation", "random"))


def test_sensitivity_grows_with_the_ratio(page):
    names, folder = page
    details = names["details"]
    assert [row["layer"] for row in details["layers"]] == ["0", "3", "6"]
    for row in details["layers"]:
        assert details["baseline"] < row["values"][0] < row["values"][2]
    assert (folder / "sensitivity.png").read_bytes()[:4] == b"\x89PNG"
