"""What a cut did, as plain values for the report, and where it declined."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ir.cost import Cost
from ...ir.ops import describe
from ..base import Skip
from .groups import Groups, layer_name
from .index.index_graph import EXTENT_ONE
from .select.choose import Choice
from .select.request import Request

# Families that the report's table shows before it says how many more there are.
SHOWN = 16
COSTS = {"params": "params", "macs": "macs", "bytes": "bytes", "peak_memory": "peak_bytes"}


def details(
    groups: Groups, alive: np.ndarray, choice: Choice, asked: Mapping[str, float], before: Cost, after: Cost
) -> dict[str, Any]:
    """JSON-able facts.

    params, macs, bytes, peak_bytes   before and after, counted in the graphs themselves
    targets    for each one what was asked for and what was reached, and whether it was the one that bound
    groups     before and after; families: for each the layer it is named after and its groups before and after
    layers     channels of each layer before and after
    off_lanes  layers that leave the lanes of the machine so that the target is met
    fenced     calls that cannot be followed, with the reason
    reached    the targets as a line of text; table: the families for the report
    """
    atoms, index = groups.alive_atoms(alive), groups.index
    targets = [_target(name, share, choice, groups, alive, before, after) for name, share in asked.items()]
    return {
        "reached": ", ".join(f"{t['target']} {t['reached']:.4g} of {t['asked']:g}" for t in targets),
        **{key: [getattr(before, key), getattr(after, key)] for key in COSTS.values()},
        "targets": targets,
        "groups": [groups.count, int(alive.sum())],
        "families": [
            {"layer": family.layer, "groups": [len(family.groups), int(alive[family.groups].sum())]}
            for family in groups.families
        ],
        "layers": [
            {"layer": layer_name(name), "channels": [len(dim), int(atoms[dim].sum())]}
            for name, dim in index.channels.items()
        ],
        "off_lanes": [groups.families[family].layer for family in choice.off_lanes],
        "fenced": [[describe(node), why] for node, why in index.fenced.items()],
        "table": _table(groups, alive),
    }


def _table(groups: Groups, alive: np.ndarray) -> dict[str, Any]:
    """The families in the order of the model; of very many those that lose the greatest share."""
    sizes = np.array([len(family.groups) for family in groups.families], int)
    left = np.array([alive[family.groups].sum() for family in groups.families], int)
    most = np.argsort(left / np.maximum(sizes, 1), kind="stable")[:SHOWN]
    rows = [
        [groups.families[i].layer, int(sizes[i]), int(left[i]), f"{1 - left[i] / sizes[i]:.0%}"] for i in np.sort(most)
    ]
    if len(sizes) > SHOWN:
        rest = np.sort(np.setdiff1d(np.arange(len(sizes)), most))
        rows.append([f"{len(rest)} more", int(sizes[rest].sum()), int(left[rest].sum()), ""])
    return {"title": "", "columns": ["channels that go together", "before", "after", "gone"], "rows": rows}


def _target(
    name: str, asked: float, choice: Choice, groups: Groups, alive: np.ndarray, before: Cost, after: Cost
) -> dict[str, Any]:
    if name == "ratio":
        reached = 1 - int(alive.sum()) / max(groups.count, 1)
    else:
        reached = getattr(after, COSTS[name]) / max(getattr(before, COSTS[name]), 1)
    return {"target": name.replace("_", "-"), "asked": asked, "reached": reached, "binds": name == choice.bound}


def skips(groups: Groups, request: Request) -> list[Skip]:
    """Fenced calls, layers whose channels stay and why, layers that `only` leaves out or lanes do not let thin."""
    index, lanes = groups.index, request.rounding.lanes
    found = [Skip.at(node, f"it stays whole with all around it: {why}") for node, why in index.fenced.items()]
    for name, dim in index.channels.items():
        why = index.why_frozen(dim)
        if why and why != EXTENT_ONE:
            found.append(Skip(layer_name(name), f"its {len(dim)} channels stay: {why}"))
    for number, family in enumerate(groups.families):
        if request.bounds.least[number] == len(family.groups):
            found.append(Skip(family.layer, "it stays whole: 'only' or 'floor' says so"))
        elif lanes > 1 and len(family.groups) <= family.step(lanes):
            what = f"its {len(family.groups)} groups of channels are no more than {lanes} lanes take"
            found.append(Skip(family.layer, what))
    return found
