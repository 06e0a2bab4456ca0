"""The pass: what it measures, that it changes nothing, its table and its plot."""

import json
import math
import sys

import pytest
import torch
from example_graphs import example_graph
from torch import nn

from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.prune.prune_channels import PruneChannels
from planish.passes.prune.sensitivity import Sensitivity
from planish.report import Report

GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.randn(8, 3, 16, 16, generator=GENERATOR)
LABELS = torch.randint(10, (8,), generator=GENERATOR)
BATCHES = [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])]


@pytest.fixture(scope="module")
def resnet() -> Graph:
    return example_graph("resnet")


def mlp() -> Graph:
    return example_graph("mlp")


def only_layer(result, layer):
    return next(row for row in result.details["layers"] if row["layer"] == layer)


@pytest.mark.parametrize("layer", ["stem.0", "layer1.1.conv1.0", "layer2.0.conv2.0", "layer2.1.conv1.0"])
def test_a_value_is_the_loss_of_the_model_pruned_there(resnet, layer):
    result = Sensitivity(ratios=(0.25, 0.5), only=(layer,), importance="l2").run(resnet, Context(data=BATCHES))
    (row,) = result.details["layers"]
    assert row["layer"] == layer
    for ratio, count, value in zip((0.25, 0.5), row["removed"], row["values"], strict=True):
        pruned = resnet.copy()
        done = PruneChannels(ratio=ratio, only=(layer,), importance="l2").run(pruned, Context())
        assert done.changed == count
        with torch.no_grad():
            losses = [float(nn.functional.cross_entropy(pruned(x), y)) for x, y in BATCHES]
        # float32, another order of sums
        assert value == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert row["values"][0] != row["values"][1] != result.details["baseline"]


def test_nothing_changes_and_a_second_run_says_the_same(resnet):
    graph = resnet.copy().train()
    text, weights = graph.text(), {name: weight.clone() for name, weight in graph.weights.items()}
    first = Sensitivity(ratios=(0.5,)).run(graph, Context(data=BATCHES))
    assert first.changed == 0
    assert graph.text() == text and graph.module.training
    assert all(torch.equal(graph.weight(name), value) for name, value in weights.items())
    assert Sensitivity(ratios=(0.5,)).run(graph, Context(data=BATCHES)) == first
    assert json.loads(json.dumps(first.details)) == first.details


def test_layers_that_share_their_channels_are_one_row(resnet):
    details = Sensitivity(ratios=(0.5,)).run(resnet, Context(data=BATCHES)).details
    assert {row["layer"]: row["with"] for row in details["layers"]} == {
        "stem.0": ["layer1.0.conv2.0", "layer1.1.conv2.0"],
        "layer1.0.conv1.0": [],
        "layer1.1.conv1.0": [],
        "layer2.0.conv1.0": [],
        "layer2.0.conv2.0": ["layer2.0.shortcut.0", "layer2.1.conv2.0"],
        "layer2.1.conv1.0": [],
    }
    assert [row["removed"] for row in details["layers"]] == [[8], [8], [8], [16], [16], [16]]


def test_the_evaluation_comes_first_and_equal_counts_are_measured_once():
    seen = []

    def evaluate(graph):
        seen.append(float(graph.weight("0.weight").detach().abs().sum()))
        return seen[-1]

    graph = mlp()
    result = Sensitivity(ratios=(0.5, 0.505, 0.75), only=("0",)).run(
        graph, Context(evaluate=evaluate, data=[(torch.randn(2, 20), torch.zeros(2, dtype=torch.long))])
    )
    (row,) = result.details["layers"]
    assert row["removed"] == [32, 32, 48]
    assert len(seen) == 3  # two counts and the baseline
    assert row["values"][0] == row["values"][1] > row["values"][2]
    assert (result.details["measure"], result.details["higher_is_better"]) == ("score", True)
    rows = graph.weight("0.weight").detach().abs().sum(1)
    assert result.details["baseline"] == pytest.approx(float(rows.sum()))
    assert row["values"][2] < row["values"][0] < result.details["baseline"]


def test_without_labels_the_outputs_are_compared():
    graph, x = mlp(), torch.randn(6, 20, generator=torch.Generator().manual_seed(4))
    result = Sensitivity(ratios=(0.25, 0.9), only=("2",)).run(graph, Context(data=[x[:3], x[3:]]))
    assert result.details["measure"] == "squared difference of outputs"
    assert result.details["baseline"] == 0.0
    (row,) = result.details["layers"]
    for ratio, value in zip((0.25, 0.9), row["values"], strict=True):
        pruned = graph.copy()
        PruneChannels(ratio=round(ratio * 32) / 32, only=("2",)).run(pruned, Context())
        with torch.no_grad():
            expected = nn.functional.mse_loss(pruned(x), graph(x))
        assert value == pytest.approx(float(expected), rel=1e-4)  # float32 outputs, and their difference


def test_a_layer_too_narrow_for_the_ratios_is_skipped():
    graph = example_graph("efficientnet")
    result = Sensitivity(ratios=(0.1,), only=("blocks.0.squeeze.reduce", "last")).run(graph, Context(data=BATCHES))
    assert [row["layer"] for row in result.details["layers"]] == ["last.0"]
    (skip,) = result.skipped
    assert skip.where == "blocks.0.squeeze.reduce"
    assert skip.why == "it has 4 groups of channels, of which no ratio up to 0.1 removes one"


def test_data_driven_importance():
    graph = mlp()
    data = [(torch.randn(4, 20), torch.randint(5, (4,)))]
    magnitude, taylor = (
        Sensitivity(ratios=(0.5,), importance=criterion).run(graph, Context(data=data)).details["layers"]
        for criterion in ("l1", "taylor")
    )
    assert [row["values"] for row in magnitude] != [row["values"] for row in taylor]
    assert Sensitivity(importance="taylor").needed() == {"data"}
    assert Sensitivity().needed() == frozenset()


def test_the_report_prints_the_table(resnet):
    outcome = Pipeline.parse("sensitivity{ratios=[0.25, 0.5], only=[stem]}").run(resnet, Context(data=BATCHES))
    report = Report.of("local", "sensitivity", outcome, None, {})
    lines = str(report).splitlines()
    details = outcome.steps[0].result.details
    (row,) = details["layers"]
    start = lines.index(f"loss without the least important channels of one layer; {details['baseline']:.4g} with all")
    assert lines[start + 1].split() == ["layer", "groups", "-25", "%", "-50", "%"]
    assert lines[start + 3].split() == ["stem.0", "+", "2", "16", *(f"{value:.4g}" for value in row["values"])]
    assert str(Report.from_dict(json.loads(json.dumps(report.as_dict())))) == str(report)


@pytest.mark.parametrize("text", ["sensitivity", 'sensitivity{ratios=[0.5], only=["0.*"], plot="a b.png"}'])
def test_text_round_trip(text):
    assert str(Pipeline.parse(text)) == text


# The plot -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_plot_every_time(tmp_path, suffix):
    graph, ctx = mlp(), Context(data=torch.randn(4, 20))
    paths = [tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"]
    for path in paths:
        Sensitivity(ratios=(0.25, 0.5), plot=str(path)).run(graph, ctx)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    assert sorted(tmp_path.iterdir()) == sorted(paths)  # nothing is left aside


def test_lines_for_few_layers_and_a_heat_map_for_many(resnet, tmp_path):
    few, many = tmp_path / "few.svg", tmp_path / "many.svg"
    Sensitivity(ratios=(0.5,), plot=str(few)).run(resnet, Context(data=BATCHES))
    graph = example_graph("efficientnet")
    details = Sensitivity(ratios=(0.5,), plot=str(many)).run(graph, Context(data=BATCHES)).details
    assert len(details["layers"]) > 8
    for path, details_of in ((few, resnet), (many, graph)):
        drawn = path.read_text()
        for row in Sensitivity(ratios=(0.5,)).run(details_of, Context(data=BATCHES)).details["layers"]:
            assert f"<!-- {row['layer']}" in drawn  # matplotlib writes texts as comments beside their outlines
    assert "<image" in many.read_text() and "<image" not in few.read_text()


def test_the_users_own_style_does_not_matter(tmp_path):
    import matplotlib

    graph, ctx, plain, styled = mlp(), Context(data=torch.randn(4, 20)), tmp_path / "a.png", tmp_path / "b.png"
    Sensitivity(ratios=(0.5,), plot=str(plain)).run(graph, ctx)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):
        Sensitivity(ratios=(0.5,), plot=str(styled)).run(graph, ctx)
        assert matplotlib.rcParams["font.size"] == 30
    assert plain.read_bytes() == styled.read_bytes()


def test_a_plot_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError) as caught:
        Sensitivity(plot=str(tmp_path / "a.png")).run(mlp(), Context(data=torch.randn(4, 20)))
    assert str(caught.value) == "sensitivity: a plot needs matplotlib; pip install 'planish[plot]'."


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plot.jpeg", "is no .png or .svg or .pdf file; name one that is"),
        ("file/a.png", "cannot be written"),
    ],
)
def test_a_plot_that_cannot_be_written(tmp_path, name, message):
    """Said before anything is measured: the data would fail otherwise."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=message):
        Sensitivity(plot=str(tmp_path / name)).run(mlp(), Context(data=[]))


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": ()}, "'ratios' is empty; expected rising shares to remove, each above 0 and below 1."),
        ({"ratios": (0.5, 0.25)}, "'ratios' is 0.5, 0.25; expected rising"),
        ({"ratios": (0.5, 1.0)}, "'ratios' is 0.5, 1; expected rising"),
        ({"ratios": (math.nan,)}, "'ratios' is nan"),
        ({"importance": "tailor"}, "unknown importance 'tailor'; did you mean 'taylor'?"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError) as caught:
        Sensitivity(**options)
    assert str(caught.value).startswith(f"sensitivity: {message}")


ONCE = [(torch.randn(4, 20), torch.randint(5, (4,)))]
CONTEXTS = {
    "nothing": (
        Context(),
        "sensitivity: there is nothing to measure with; pass evaluate=function, or data=loader of (inputs, labels) or "
        "of inputs.",
    ),
    "once": (
        Context(data=iter(ONCE)),
        "sensitivity: the data can be read only once; give a list or a loader that starts anew.",
    ),
    "empty": (Context(data=[]), "sensitivity: the loader is empty; give at least one batch."),
    "score": (
        Context(evaluate=lambda graph: math.nan),
        "sensitivity: the evaluation gives nan; expected a finite number, higher is better.",
    ),
    "loss": (
        Context(data=ONCE, loss=lambda out, labels: out.sum() * math.inf),
        "sensitivity, batch 1: the loss is inf; check the labels, the data's range and the weights.",
    ),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_refused_contexts(name):
    ctx, message = CONTEXTS[name]
    with pytest.raises(UsageError) as caught:
        Sensitivity(ratios=(0.5,)).run(mlp(), ctx)
    assert str(caught.value).replace("-inf", "inf") == message


def test_patterns_without_a_match_and_without_anything_to_remove():
    ctx = Context(data=torch.randn(4, 20))
    with pytest.raises(UsageError, match=r"sensitivity: '7' in 'only' matches no weight"):
        Sensitivity(only=("7",)).run(mlp(), ctx)
    with pytest.raises(UsageError, match=r"no channels that '4' makes can be removed; prune-channels says why a layer"):
        Sensitivity(only=("4",)).run(mlp(), ctx)
