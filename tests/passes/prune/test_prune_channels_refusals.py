"""The pass: what it refuses, and what it reports."""

import pytest
import torch
from example_graphs import capture_seeded, example_graph
from torch import nn

from planish.ir.errors import UsageError, VerifyError
from planish.passes.base import Context
from planish.passes.prune.index import rules
from planish.passes.prune.prune_channels import PruneChannels


def test_a_model_with_nothing_to_remove():
    graph = capture_seeded(nn.Linear(4, 3), 4)
    result = PruneChannels(macs=1.0).run(graph, Context())
    assert (result.changed, result.details["families"]) == (0, [])
    assert [skip.why for skip in result.skipped] == ["its 3 channels stay: they are part of a graph output"]
    text = graph.text()
    for options in ({"macs": 0.5}, {"ratio": 0.5}, {"peak_memory": 0.9}):
        with pytest.raises(UsageError) as caught:
            PruneChannels(**options).run(graph, Context())
        assert str(caught.value) == (
            "prune-channels: no channel of the model can be removed; the 3 channels of 'weight' stay: they are part of "
            "a graph output."
        )
    assert graph.text() == text


def test_a_target_between_two_steps_is_refused_and_the_graph_untouched():
    graph = example_graph("mlp")
    text = graph.text()
    with pytest.raises(UsageError) as caught:
        PruneChannels(macs=0.7, round_to=32).run(graph, Context())
    assert str(caught.value) == (
        "prune-channels: no choice of channels comes within 0.5 % of macs 0.7; the nearest reachable shares are 0.5229 "
        "and 1; ask for one of them, or lower 'round-to' from 32."
    )
    assert graph.text() == text


def test_what_only_leaves_out_is_reported():
    result = PruneChannels(ratio=0.5, only=("0",)).run(example_graph("mlp"), Context())
    assert [(skip.where, skip.why) for skip in result.skipped] == [
        ("4", "its 5 channels stay: they are part of a graph output"),
        ("2", "it stays whole: 'only' or 'floor' says so"),
    ]


def test_a_layer_narrower_than_the_lanes_is_reported():
    graph = example_graph("efficientnet")
    result = PruneChannels(macs=0.7, round_to=8).run(graph, Context())
    narrow = {skip.where: skip.why for skip in result.skipped if "lanes" in skip.why}
    assert narrow["blocks.0.squeeze.reduce"] == "its 4 groups of channels are no more than 8 lanes take"


def test_fenced_ops_and_frozen_layers_are_reported():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.sort(self.a(x), dim=-1)[0])))

    result = PruneChannels(ratio=0.5).run(capture_seeded(Sorted(), 6), Context())
    skips = {skip.where: skip.why for skip in result.skipped}
    (fenced,) = [where for where in skips if "aten.sort" in where]
    assert "test_prune_channels_refusals.py:" in fenced
    assert "it has no rule" in skips[fenced]
    assert "aten.sort" in skips["a"]
    assert "graph output" in skips["c"]
    assert "b" not in skips


def test_a_rule_that_trips_fences_its_op(monkeypatch):
    def trips(index, node, call):
        (one,) = index[call.self]
        return [one]

    graph = example_graph("mlp")
    monkeypatch.setitem(rules.RULES, "gelu", trips)
    result = PruneChannels(ratio=0.5).run(graph, Context())
    (why,) = [skip.why for skip in result.skipped if "aten.gelu" in skip.where]
    assert "does not cover this form of the call (too many values to unpack" in why
    assert [layer["channels"] for layer in result.details["layers"]] == [[64, 32], [32, 32], [5, 5]]


def test_a_wrong_rule_ends_in_a_verify_error(monkeypatch):
    def forgets(index, node, call):
        return index[call.self]

    graph = example_graph("resnet")
    monkeypatch.setitem(rules.RULES, "add", forgets)
    with pytest.raises(VerifyError):
        PruneChannels(ratio=0.5).run(graph, Context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no target is given; expected ratio, macs, params, bytes or peak-memory."),
        (
            {"ratio": 0.5, "peak_memory": 0.5},
            "'ratio' and 'peak-memory' are given; 'ratio' cannot be combined with other targets; leave one out.",
        ),
        ({"peak_memory": 1.5}, "peak-memory is 1.5; expected the share of peak memory that remains, above 0"),
        ({"params": 0.0}, "params is 0; expected the share of parameters that remains, above 0 and at most 1."),
        ({"ratio": 0.0}, "ratio is 0; expected the share of channels to remove, above 0 and at most 1"),
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"macs": -0.1}, "macs is -0.1; expected the share of MACs that remains"),
        ({"macs": float("nan")}, "macs is nan"),
        ({"macs": 0.5, "importance": "l7"}, "unknown importance 'l7'; it has: l1, l2, batch-norm, taylor"),
        ({"macs": 0.5, "scope": "local"}, "unknown scope 'local'; did you mean 'global'?"),
        ({"macs": 0.5, "normalizer": "meen"}, "unknown normalizer 'meen'; did you mean 'mean'?"),
        ({"macs": 0.5, "round_to": -8}, "round-to is -8"),
        ({"macs": 0.5, "floor": ("stem",)}, "cannot read 'stem' in 'floor'; expected pattern:share"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError) as caught:
        PruneChannels(**options)
    assert str(caught.value).startswith("prune-channels: ")
    assert message in str(caught.value)


def test_a_keep_pattern_without_a_match():
    with pytest.raises(UsageError, match=r"'layer1.0.conv9' in 'keep' matches no weight; did you mean 'layer1.0"):
        PruneChannels(ratio=0.5, keep=("layer1.0.conv9",)).run(example_graph("resnet"), Context())


@pytest.mark.parametrize(("name", "value"), [("2.weight", float("nan")), ("4.bias", float("inf"))])
def test_weights_that_are_not_finite(name, value):
    graph = example_graph("mlp")
    with torch.no_grad():
        graph.weight(name).view(-1)[3] = value
    with pytest.raises(UsageError, match=f"weight '{name}' holds 1 values that are NaN or infinite"):
        PruneChannels(ratio=0.5).run(graph, Context())


def test_a_ratio_that_would_empty_a_layer():
    with pytest.raises(UsageError, match=r"'stem.0' has 8 output channels, ratio 0.75 rounded to 8 leaves 0"):
        PruneChannels(ratio=0.75, round_to=8).run(example_graph("efficientnet"), Context())
