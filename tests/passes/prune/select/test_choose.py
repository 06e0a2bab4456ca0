"""Targets: met within half a percent, alone and together, between lanes; and the errors where they cannot be."""

import itertools

import numpy as np
import pytest
from selection_cases import chosen, ranked, survivors

from planish.ir.errors import UsageError
from planish.passes.prune.select.ladders import Rounding
from planish.passes.prune.select.order import SCOPES
from planish.passes.prune.select.quantities import QUANTITIES
from planish.passes.prune.select.ranking import Ranking
from planish.passes.prune.select.targets import TOLERANCE

FINE = ("resnet", "mobilenet", "efficientnet", "densenet", "vgg", "mlp")


def message(name: str, scope: str = "layer", **options) -> str:
    with pytest.raises(UsageError) as caught:
        chosen(name, scope, **options)
    return str(caught.value)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("target", ["macs", "params", "bytes"])
@pytest.mark.parametrize("name", FINE)
def test_targets_are_met_within_half_a_percent(name, target, scope):
    for share in (0.8, 0.5, 0.35):
        choice = chosen(name, scope, shares={target: share})
        assert abs(choice.reached[target] / share - 1) <= 0.005
        assert choice.bound == target


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("name", "share"), [("resnet", 0.5), ("mobilenet", 0.5), ("vgg", 0.5), ("densenet", 0.5)])
def test_peak_memory_is_met(name, share, scope):
    assert abs(chosen(name, scope, shares={"peak_memory": share}).reached["peak_memory"] / share - 1) <= 0.005


def test_peak_memory_spares_what_comes_after_the_peak():
    """In the global ranking; the same share of every layer is what `layer` means, whatever it saves."""
    left = survivors("resnet", chosen("resnet", "global", shares={"peak_memory": 0.5}))
    assert left["layer2.0.conv1.0"] == left["layer2.1.conv1.0"] == left["layer2.0.conv2.0"] == 32
    assert max(survivors("resnet", chosen("resnet", "layer", shares={"peak_memory": 0.5})).values()) < 32


def test_the_reached_share_is_what_the_survivors_count():
    groups, scores = ranked("efficientnet")
    choice, ranking = chosen("efficientnet", "global", shares={"params": 0.5}), Ranking(groups, scores)
    params = QUANTITIES["params"](ranking)
    assert choice.reached["params"] == int(params(choice.survivors)) / params.full
    assert [int(choice.alive[f.groups].sum()) for f in groups.families] == choice.survivors.tolist()
    for family in groups.families:  # the least important ones are gone
        gone = ~choice.alive[family.groups]
        if gone.any():
            assert scores[family.groups][gone].max() <= scores[family.groups][~gone].min()


@pytest.mark.parametrize("scope", SCOPES)
def test_of_several_targets_one_binds_and_all_hold(scope):
    asked = {"macs": 0.6, "params": 0.5, "bytes": 0.7, "peak_memory": 0.9}
    choice = chosen("resnet", scope, shares=asked)
    over = {name: choice.reached[name] / share - 1 for name, share in asked.items()}
    assert max(over.values()) == over[choice.bound]
    assert abs(over[choice.bound]) <= TOLERANCE
    for bound in asked:  # any of them can be the one
        loose = dict.fromkeys(asked, 1.0) | {bound: 0.5}
        assert chosen("resnet", scope, shares=loose).bound == bound


def test_a_target_of_all_removes_nothing():
    for name, scope in itertools.product(("mlp", "resnet"), SCOPES):
        assert chosen(name, scope, shares={"macs": 1.0, "peak_memory": 1.0}).alive.all()


def test_a_target_below_the_minimum():
    assert message("mlp", shares={"macs": 0.001}) == (
        "prune-channels: macs 0.001 is below the reachable minimum of 0.007454; what holds the model's inputs and "
        "outputs and one channel of every layer stay; raise 'macs'."
    )
    assert message("mlp", "global", shares={"peak_memory": 0.01}).startswith(
        "prune-channels: peak-memory 0.01 is below the reachable minimum of 0.2109; what holds the model's inputs and "
        "outputs and 10% of every layer stay"
    )


def test_the_minimum_that_is_named_can_be_asked_for():
    choice = chosen("mlp", shares={"macs": 0.007454})
    assert choice.survivors.tolist() == [1, 1]


def test_a_target_in_a_gap_names_what_is_reachable():
    """One layer of 64 channels and one of 32, in multiples of 32: the only other choice has half of the first layer."""
    assert message("mlp", shares={"macs": 0.7}, rounding=Rounding(32, explicit=True)) == (
        "prune-channels: no choice of channels comes within 0.5 % of macs 0.7; the nearest reachable shares are 0.5229 "
        "and 1; ask for one of them, or lower 'round-to' from 32."
    )
    full, half = (20 + 32) * 64 + 32 * 5, (20 + 32) * 32 + 32 * 5
    assert half / full == pytest.approx(0.5229, abs=1e-4)
    choice = chosen("mlp", shares={"macs": 0.5229}, rounding=Rounding(32, explicit=True))
    assert choice.survivors.tolist() == [32, 32]


def test_a_gap_without_lanes():
    """Three key heads: all that can go is one of them with its query heads, or two."""
    assert message("attention", shares={"macs": 0.8}) == (
        "prune-channels: no choice of channels comes within 0.5 % of macs 0.8; the nearest reachable shares are 0.6667 "
        "and 1; ask for one of them."
    )


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("lanes", [4, 8])
def test_lanes_of_a_target_give_way_in_as_few_layers_as_possible(scope, lanes):
    """Those of the user never do. Up or down: in either direction, whichever meets the target."""
    groups, _ = ranked("resnet")
    for share in (0.7, 0.55):
        choice = chosen("resnet", scope, shares={"macs": share}, rounding=Rounding(lanes))
        assert abs(choice.reached["macs"] / share - 1) <= 0.005
        off = [number for number, left in enumerate(choice.survivors) if left % lanes]
        assert tuple(off) == choice.off_lanes
        assert len(off) <= 2
        try:
            strict = chosen("resnet", scope, shares={"macs": share}, rounding=Rounding(lanes, explicit=True))
        except UsageError as error:
            assert "no choice of channels" in str(error)
            assert off
        else:
            assert (strict.survivors % lanes == 0).all()
            assert not off
    assert len(groups.families) == 6


def test_below_one_vector_of_a_machine_where_nothing_else_is_left():
    """Sixteen lanes leave the MLP 16 of each layer; a target below that goes on, in whole channels."""
    choice = chosen("mlp", shares={"macs": 0.05}, rounding=Rounding(16))
    assert abs(choice.reached["macs"] / 0.05 - 1) <= 0.005
    assert "below the reachable minimum" in message("mlp", shares={"macs": 0.05}, rounding=Rounding(16, explicit=True))


def test_one_wide_step_among_many_narrow_ones_is_left_out():
    """A stream that is read everywhere takes steps of percents; the layers inside the blocks make up for it."""
    for share in np.linspace(0.4, 0.9, 11):
        assert abs(chosen("resnet", "isomorphic", shares={"macs": share}).reached["macs"] / share - 1) <= 0.005


class TestRatio:
    def test_is_the_share_removed_rounded_down(self):
        assert survivors("mlp", chosen("mlp", ratio=0.25)) == {"0": 48, "2": 24}
        assert survivors("mlp", chosen("mlp", ratio=0.01)) == {"0": 64, "2": 32}
        assert survivors("mlp", chosen("mlp", ratio=0.99)) == {"0": 1, "2": 1}

    @pytest.mark.parametrize(("ratio", "left"), [(0.5, (32, 16)), (0.6, (24, 16)), (0.1, (56, 32)), (0.8, (16, 8))])
    def test_rounding_to_lanes_is_to_the_nearest_multiple(self, ratio, left):
        """64 and 32 channels: 0.6 leaves 26 and 13, nearest multiples of 8 are 24 and 16."""
        choice = chosen("mlp", ratio=ratio, rounding=Rounding(8, explicit=True))
        assert tuple(survivors("mlp", choice).values()) == left

    def test_an_emptied_layer_is_named(self):
        assert message("buffered", ratio=0.9, rounding=Rounding(8, explicit=True)) == (
            "prune-channels: 'make' has 8 output channels, ratio 0.9 rounded to 8 leaves 0; "
            "lower 'ratio' or list the layer in 'keep'."
        )
        assert "'0' has 64 output channels, ratio 1 leaves 0" in message("mlp", ratio=1.0)
        # the lanes of a target are no wish of the user: the narrow layer stays
        assert chosen("buffered", ratio=0.5, rounding=Rounding(8)).alive.all()

    @pytest.mark.parametrize("scope", ["global", "isomorphic"])
    def test_of_all_channels_together_leaves_a_tenth_of_each_layer(self, scope):
        choice = chosen("mobilenet", scope, ratio=0.4)
        assert abs(choice.reached["ratio"] - 0.4) <= 1 / len(choice.alive)
        assert "ratio 0.97 cannot be reached: at most 0.8" in message("mobilenet", scope, ratio=0.97)
        groups, _ = ranked("mobilenet")
        tight = chosen("mobilenet", scope, ratio=0.88).alive
        assert all(tight[family.groups].mean() >= 0.1 for family in groups.families)
