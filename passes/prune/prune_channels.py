"""prune-channels: remove the least important channels of a model, and prove the cut."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
import torch

from ...ir.cost import Cost, cost
from ...ir.errors import UsageError
from ...ir.graph import Graph
from ..base import Context, Pass, Result, Skip
from .budget import MacCounter
from .cut import cut
from .groups import Groups, layer_name
from .index.index_graph import EXTENT_ONE, IndexGraph
from .proof import Snapshot, prove
from .score.criteria import CRITERIA
from .score.importance import importance
from .select import TOLERANCE, Rounding, Selector, by_macs, by_ratio


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove whole channels, wherever they occur, until a target is met.

    before:  %y = conv2d(%x, w[64,32,3,3], b[64]);  %z = conv2d(relu(%y), v[16,64,1,1])
    after:   %y = conv2d(%x, w[32,32,3,3], b[32]);  %z = conv2d(relu(%y), v[16,32,1,1])
    skips:   an op without a rule (its region stays whole); channels that a graph output, an input or a softmax holds;
             a layer narrower than the lanes that channel counts are rounded to

    Every cut is proved: the smaller graph equals the whole one with the removed channels masked, in float64 to 1e-9.
    """

    name: ClassVar[str] = "prune-channels"
    drops: ClassVar[frozenset[str]] = frozenset({"calibrated"})  # ranges were observed on the whole model
    refuses: ClassVar[frozenset[str]] = frozenset({"fake-quant"})  # scales per channel would not follow the cut

    ratio: float | None = None
    """The share of channels to REMOVE, in (0, 1]: 0.25 leaves three quarters. `scope=layer`: of every layer, rounded
    down before lanes; `scope=global`: of all channels together. One that would empty a layer is refused."""
    macs: float | None = None
    """The share of the model's multiply-accumulates that REMAINS, in (0, 1], met within 0.5 % where channel counts
    allow it: 0.7 removes 30 %."""
    importance: str = "l1"
    """The criterion: l1 or l2, the mean magnitude of a group in each weight, relative to its layer."""
    scope: str | None = None
    """layer: the same share of every layer. global: first what does the least damage to its layer for what it saves;
    at least a tenth of every layer stays. none: layer for `ratio`, global for `macs`."""
    round_to: int = 0
    """Remaining channel counts are multiples of this, or whole. 0: the target's lanes, 1 where no target is given."""
    keep: tuple[str, ...] = ()
    """Layers whose output channels all stay: names or patterns of weights, layers or blocks (`stem`, `*.conv1`)."""
    seed: int = 0
    """Of the proof's random inputs and weights."""

    def __post_init__(self) -> None:
        given = [name for name in ("ratio", "macs") if getattr(self, name) is not None]
        if len(given) != 1:
            what = "both 'ratio' and 'macs' are given" if given else "no target is given"
            raise UsageError(self.name, what, "expected exactly one of 'ratio' and 'macs'")
        value = getattr(self, given[0])
        if not 0 < value <= 1:
            meaning = "the share of channels to remove" if given[0] == "ratio" else "the share of MACs that remains"
            raise UsageError(self.name, f"{given[0]} is {value:g}", f"expected {meaning}, above 0 and at most 1")
        if self.importance not in CRITERIA:
            raise UsageError(self.name, f"unknown importance '{self.importance}'", f"it has: {', '.join(CRITERIA)}")
        if self.scope not in (None, "layer", "global"):
            raise UsageError(self.name, f"unknown scope '{self.scope}'", "expected layer or global")
        if self.round_to < 0:
            raise UsageError(self.name, f"round-to is {self.round_to}", "expected 0 (the target's lanes) or more")

    def run(self, graph: Graph, ctx: Context) -> Result:
        """Cut the graph. Raises UsageError for a target out of reach, a `keep` pattern without a match or weights
        that are not finite; VerifyError naming the node where the proof fails."""
        check_finite(graph, self.name)
        was_training = graph.module.training
        if was_training:  # dropout would make the proof's two graphs differ
            graph.eval()
        before, whole = cost(graph), Snapshot.of(graph)
        index = IndexGraph(graph, keep=self._kept(graph))
        groups = Groups(index)
        alive = self._spend(groups, self._select(groups, self._rounding(ctx)), ctx)
        atoms = groups.alive_atoms(alive)
        error = 0.0
        if not alive.all():
            cut(index, atoms)
            error = prove(whole, index, atoms, self.seed)
        if was_training:
            graph.train()
        details = self._details(groups, alive, before, cost(graph), error)
        return Result(int((~alive).sum()), tuple(_skips(groups, self._rounding(ctx))), details)

    def _rounding(self, ctx: Context) -> Rounding:
        if self.round_to:
            return Rounding(self.round_to, explicit=True)
        return Rounding(ctx.target.lanes if ctx.target is not None else 1)

    def _kept(self, graph: Graph) -> list[str]:
        """The weights that `keep` names. Raises UsageError for a pattern without a match."""
        kept: dict[str, None] = {}
        for pattern in self.keep:
            found = [n for n in graph.weights if any(fnmatchcase(part, pattern) for part in _prefixes(n))]
            if not found:
                near = get_close_matches(pattern, map(layer_name, graph.weights), n=1)
                hint = f"did you mean '{near[0]}'?" if near else "expected a weight's name or a pattern like 'head.*'"
                raise UsageError(self.name, f"'{pattern}' in 'keep' matches no weight", hint)
            kept.update(dict.fromkeys(found))
        return list(kept)

    def _select(self, groups: Groups, rounding: Rounding) -> np.ndarray:
        scores = importance(groups, CRITERIA[self.importance])
        if self.ratio is not None:
            return by_ratio(Selector(groups, scores, self.scope or "layer", rounding), self.ratio)
        assert self.macs is not None
        counter = MacCounter(groups)
        selector = Selector(groups, scores, self.scope or "global", rounding, counter.savings(groups))
        return by_macs(selector, counter, self.macs)

    def _spend(self, groups: Groups, alive: np.ndarray, ctx: Context) -> np.ndarray:
        """Each family that shrinks is one rewrite: without fuel it stays whole."""
        alive = alive.copy()
        for family in groups.families:
            if not alive[family.groups].all() and not ctx.fuel.take():
                alive[family.groups] = True
        return alive

    def _details(self, groups: Groups, alive: np.ndarray, before: Cost, after: Cost, error: float) -> dict[str, Any]:
        atoms = groups.alive_atoms(alive)
        share = after.macs / before.macs if before.macs else 1.0
        details = {
            "params": [before.params, after.params],
            "macs": [before.macs, after.macs],
            "macs_share": share,
            "groups": [groups.count, int(alive.sum())],
            "families": len(groups.families),
            "proof_error": error,
            "layers": [
                {"layer": layer_name(name), "channels": [len(dim), int(atoms[dim].sum())]}
                for name, dim in groups.index.channels.items()
            ],
        }
        if self.macs is not None:
            details["target_met"] = abs(share - self.macs) <= TOLERANCE * self.macs
        return details


def _prefixes(name: str) -> Iterable[str]:
    """`a`, `a.b`, `a.b.weight` of `a.b.weight`."""
    return accumulate(name.split("."), "{}.{}".format)


def check_finite(graph: Graph, where: str) -> None:
    """Raises UsageError naming a parameter with NaN or infinity, or a buffer with NaN."""
    for name, weight in graph.weights.items():
        if not weight.is_floating_point():
            continue
        is_bad = ~torch.isfinite(weight) if isinstance(weight, torch.nn.Parameter) else torch.isnan(weight)
        if bool(is_bad.any()):
            count = int(is_bad.sum())
            what = f"weight '{name}' holds {count} values that are NaN or infinite"
            raise UsageError(where, what, "expected finite weights", "check how the model was trained or loaded")


def _skips(groups: Groups, rounding: Rounding) -> list[Skip]:
    """Fenced calls, layers whose channels stay and why, layers narrower than the lanes."""
    index = groups.index
    fenced = [Skip.at(node, f"it stays whole with all around it: {why}") for node, why in index.fenced.items()]
    frozen = [
        Skip(layer_name(name), f"its {len(dim)} channels stay: {why}")
        for name, dim in index.channels.items()
        if (why := index.why_frozen(dim)) and why != EXTENT_ONE
    ]
    narrow = [
        Skip(family.layer, f"its {len(family.groups)} groups of channels are no more than {rounding.lanes} lanes take")
        for family in groups.families
        if len(family.groups) <= family.step(rounding.lanes) and rounding.lanes > 1
    ]
    return fenced + frozen + narrow
