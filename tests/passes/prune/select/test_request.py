"""Floors, ceilings, `only`, and sets of layers that stay alike."""

import pytest
import torch
from selection_cases import chosen, ranked, survivors
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.select.bounds import Share
from planish.passes.prune.select.ladders import Rounding
from planish.passes.prune.select.order import SCOPES
from planish.passes.prune.select.request import Request, refuse_overlap

MACS = {"macs": 0.5}


def shares(*texts: str) -> list[Share]:
    return [Share.parse(text, "prune-channels", "floor") for text in texts]


def left(name: str, scope: str = "layer", asked=None, **options) -> dict[str, int]:
    return survivors(name, chosen(name, scope, shares=asked or MACS, **options))


def message(name: str, scope: str = "layer", asked=None, **options) -> str:
    with pytest.raises(UsageError) as caught:
        chosen(name, scope, shares=asked or MACS, **options)
    return str(caught.value)


@pytest.mark.parametrize("scope", SCOPES)
def test_floors_hold_and_the_target_is_met_elsewhere(scope):
    found = left("resnet", scope, {"macs": 0.7}, floors=shares("layer1.*.conv1:0.9", "stem:1"))
    assert min(found["layer1.0.conv1.0"], found["layer1.1.conv1.0"]) >= 15  # nine tenths of 16, rounded up
    assert found["stem.0"] == 16


@pytest.mark.parametrize("scope", SCOPES)
def test_a_floor_without_a_pattern_is_for_all_that_none_names(scope):
    found = left("mlp", scope, {"macs": 0.3}, floors=shares("0.5", "2:0.05"))
    assert found["0"] >= 32
    assert found["2"] < 16


def test_a_users_floor_takes_the_place_of_the_tenth_that_the_rankings_leave():
    groups, _ = ranked("mlp")
    assert Request.of(groups, "global", shares=MACS).bounds.least.tolist() == [7, 4]
    assert Request.of(groups, "global", shares=MACS, floors=shares("0.02")).bounds.least.tolist() == [2, 1]
    assert Request.of(groups, "layer", shares=MACS).bounds.least.tolist() == [1, 1]


@pytest.mark.parametrize("scope", SCOPES)
def test_ceilings_hold_even_where_the_target_would_not_ask_for_it(scope):
    assert left("mlp", scope, {"macs": 1.0}, ceilings=shares("0:0.25")) == {"0": 16, "2": 32}
    found = left("resnet", scope, {"macs": 0.8}, ceilings=shares("layer2.1.conv1:0.5", "layer2.*:0.9"))
    assert found["layer2.1.conv1.0"] <= 16  # of two patterns the stricter one
    assert found["layer2.0.conv1.0"] <= 28


def test_ceilings_come_in_whole_lanes():
    assert left("mlp", asked={"macs": 1.0}, ceilings=shares("0:0.7"), rounding=Rounding(8)) == {"0": 40, "2": 32}


def test_floors_and_ceilings_hold_for_a_ratio():
    options = {"floors": shares("0:0.9"), "ceilings": shares("2:0.25")}
    assert survivors("mlp", chosen("mlp", ratio=0.5, **options)) == {"0": 58, "2": 8}
    assert survivors("mlp", chosen("mlp", ratio=1.0, floors=shares("0.1"))) == {"0": 7, "2": 4}


def test_a_floor_above_the_ceiling():
    assert message("mlp", floors=shares("0:0.5"), ceilings=shares("0:0.25")) == (
        "prune-channels: the floor of '0' is 32 groups of channels and its ceiling 16; expected a floor that is not "
        "above the ceiling."
    )


@pytest.mark.parametrize("text", ["layer1", "layer1:", "layer1:half", "layer1:0", "layer1:1.5", ":", "nan"])
def test_a_share_that_cannot_be_read(text):
    with pytest.raises(UsageError) as caught:
        Share.parse(text, "prune-channels", "ceiling")
    assert str(caught.value) == (
        f"prune-channels: cannot read '{text}' in 'ceiling'; expected pattern:share, as 'layer1.*:0.5', "
        "with a share in (0, 1]."
    )


@pytest.mark.parametrize("scope", SCOPES)
def test_only_what_is_named_is_pruned(scope):
    found = left("resnet", scope, {"macs": 0.8}, only=("layer2.*.conv1", "layer1.0.conv1"))
    whole = left("resnet", scope, {"macs": 1.0})
    assert {layer for layer, count in found.items() if count < whole[layer]} <= {
        "layer2.0.conv1.0",
        "layer2.1.conv1.0",
        "layer1.0.conv1.0",
    }


@pytest.mark.parametrize("scope", SCOPES)
def test_sets_stay_alike(scope):
    """Layers of one width keep one width; of others the same share."""
    together = ("layer1.*.conv1", "layer2")
    for share in (0.75, 0.5, 0.4):
        found = left("resnet", scope, {"macs": share}, together=together)
        assert found["layer1.0.conv1.0"] == found["layer1.1.conv1.0"]
        assert found["layer2.0.conv1.0"] == found["layer2.1.conv1.0"] == found["layer2.0.conv2.0"]
    mixed = left("mobilenet", scope, {"macs": 0.6}, together=("blocks.*.expand",))
    kept = [mixed[f"blocks.{block}.expand.0"] / wide for block, wide in enumerate((32, 48, 48, 64))]
    assert max(kept) - min(kept) <= 1 / 32


def test_sets_stay_alike_in_lanes():
    found = left("resnet", "global", {"macs": 0.6}, together=("layer1.*.conv1",), rounding=Rounding(4, explicit=True))
    assert found["layer1.0.conv1.0"] == found["layer1.1.conv1.0"]
    assert all(count % 4 == 0 for count in found.values())


@pytest.mark.parametrize(("option", "word"), [("only", "only"), ("together", "groups")])
def test_a_selector_without_a_match(option, word):
    assert message("resnet", **{option: ("layer1.0.conv9",)}) == (
        f"prune-channels: 'layer1.0.conv9' in '{word}' matches no weight; did you mean 'layer1.0.conv2'?"
    )
    assert "matches no weight" in message("resnet", floors=shares("nothing.*:0.5"))
    assert "matches no weight" in message("resnet", ceilings=shares("nothing.*:0.5"))


@pytest.mark.parametrize(("option", "word"), [("only", "only"), ("together", "groups"), ("ceilings", "ceiling")])
def test_a_selector_of_what_cannot_be_pruned(option, word):
    value = shares("head:0.5") if option == "ceilings" else ("head",)
    assert message("resnet", **{option: value}) == (
        f"prune-channels: 'head' in '{word}' names only channels that cannot be pruned; those of 'head.weight' stay: "
        "they are part of a graph output."
    )


def test_a_layer_in_two_sets():
    assert message("resnet", together=("layer1.0.conv1", "layer1.*.conv1")) == (
        "prune-channels: 'layer1.*.conv1' and 'layer1.0.conv1' in 'groups' both name 'layer1.0.conv1.0'; its channels "
        "are one set with those of both; join the patterns."
    )


def test_keep_and_only_of_one_layer():
    names = ["stem.weight", "body.0.weight", "head.weight"]
    refuse_overlap(names, ("stem",), ("body", "head"))
    with pytest.raises(UsageError) as caught:
        refuse_overlap(names, ("body.*",), ("head", "body"))
    assert str(caught.value) == (
        "prune-channels: 'body.0.weight' is named by 'keep' and by 'only'; take it out of one of them."
    )


def test_a_model_of_one_chain_that_cannot_be_pruned():
    groups = Groups(IndexGraph(capture(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4))))
    for options in ({"shares": {"macs": 0.5}}, {"ratio": 0.5}):
        with pytest.raises(UsageError) as caught:
            Request.of(groups, "layer", **options)
        assert str(caught.value) == (
            "prune-channels: no channel of the model can be removed; the 3 channels of '0' stay: they are part of a "
            "graph output."
        )
    assert Request.of(groups, "layer", shares={"macs": 1.0}).bounds.least.tolist() == []


def test_floors_that_leave_everything_whole():
    assert message("mlp", floors=shares("1")) == (
        "prune-channels: no channel of the model can be removed; floors leave every layer whole; lower 'floor'."
    )
