"""prune-channels: remove the least important channels of a model, and prove the cut."""

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import torch

from ...ir.cost import cost
from ...ir.errors import UsageError
from ...ir.graph import Graph
from ..base import Context, Pass, Result
from ..pipeline_text import did_you_mean
from ..selectors import select
from .compensate import check_methods, compensate
from .cut import cut
from .groups import Groups
from .index.index_graph import IndexGraph
from .proof import Snapshot, prove
from .score.criteria import CRITERIA, NEEDS
from .score.evidence import eval_form, gather
from .score.normalizers import NORMALIZERS
from .score.ranked import ranked
from .select.bounds import Share
from .select.choose import choose
from .select.ladders import Rounding
from .select.order import SCOPES
from .select.quantities import QUANTITIES
from .select.request import Request, refuse_overlap
from .summary import details, skips
from .survivors import Survivors


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove whole channels, wherever they occur, until the targets are met.

    before:  %y = conv2d(%x, w[64,32,3,3], b[64]);  %z = conv2d(relu(%y), v[16,64,1,1])
    after:   %y = conv2d(%x, w[32,32,3,3], b[32]);  %z = conv2d(relu(%y), v[16,32,1,1])
    skips:   an op without a rule (its region stays whole); channels that a graph output, an input or a softmax holds;
             a layer narrower than the lanes that channel counts are rounded to; a layer that `only` or `floor` leaves
             whole

    Targets are upper bounds on what remains. Of several the one that binds is met within 0.5 %. Every cut is proved:
    the smaller graph equals the whole one with the removed channels masked, in float64 to 1e-9.
    """

    name: ClassVar[str] = "prune-channels"
    drops: ClassVar[frozenset[str]] = frozenset({"calibrated"})  # ranges were observed on the whole model
    # Scales per channel would not follow the cut.
    refuses: ClassVar[frozenset[str]] = frozenset({"fake-quant", "integers"})

    ratio: float | None = None
    """The share of channels to REMOVE, in (0, 1]: 0.25 leaves three quarters. `scope=layer`: of every layer, rounded
    down before lanes; else of all channels together. One that would empty a layer is refused. No other target goes
    with it."""
    macs: float | None = None
    """The share of the model's multiply-accumulates that REMAINS, in (0, 1]: 0.7 removes 30 %."""
    params: float | None = None
    """The share of the parameters that remains, in (0, 1]."""
    bytes: float | None = None
    """The share of the bytes of all weights and buffers that remains, in (0, 1]."""
    peak_memory: float | None = None
    """The share that remains of the bytes of activations in use at the worst moment of a run, in (0, 1]."""
    importance: str = "l1"
    """The criterion that ranks channels: l1, l2, lamp, geometric-median, batch-norm, random; with data activation and
    apoz; with labelled data taylor, fisher and hessian (docs/importance.md)."""
    normalizer: str = "mean"
    """How scores of different layers are made comparable: mean, max, sum, standard, gaussian or none."""
    scope: str | None = None
    """layer: the same share of every layer. global: first what does the least damage to its layer for what it saves.
    isomorphic: layers of one structure are ranked together, each such class loses the same share. The latter two leave
    at least a tenth of every layer. none: layer for `ratio`, global for other targets."""
    round_to: int = 0
    """Remaining channel counts are multiples of this, or whole. 0: the target's lanes, which as few layers as possible
    leave where no multiples meet a target; 1 where no target machine is given."""
    floor: tuple[str, ...] = ()
    """At least this share of channels stays: `layer1.*:0.5` for the layers that a name or pattern means, `0.2` for all
    that none means."""
    ceiling: tuple[str, ...] = ()
    """At most this share of channels stays, in the same form."""
    keep: tuple[str, ...] = ()
    """Layers whose output channels all stay: names or patterns of weights, layers or blocks (`stem`, `*.conv1`)."""
    only: tuple[str, ...] = ()
    """Only channels that these layers make are removed."""
    groups: tuple[str, ...] = ()
    """Each name or pattern makes one set of layers that lose the same share, so that layers that are alike stay so."""
    compensate: tuple[str, ...] = ()
    """With unlabelled data, what is left takes over what the removed channels did: bias (the mean), reconstruct (least
    squares), batch-norm (its statistics); any of them, after the proof (docs/compensation.md)."""
    seed: int = 0
    """Of the proof's random inputs and weights."""

    def __post_init__(self) -> None:
        given = [name for name in ("ratio", *QUANTITIES) if getattr(self, name) is not None]
        if not given:
            raise UsageError(self.name, "no target is given", "expected ratio, macs, params, bytes or peak-memory")
        if "ratio" in given and len(given) > 1:
            what = f"'ratio' and '{_dashed(given[1])}' are given"
            raise UsageError(self.name, what, "'ratio' cannot be combined with other targets", "leave one out")
        for name in given:
            self._check_share(name)
        for option, known in (("importance", CRITERIA), ("normalizer", NORMALIZERS), ("scope", SCOPES)):
            self._check_word(option, known)
        if self.round_to < 0:
            raise UsageError(self.name, f"round-to is {self.round_to}", "expected 0 (the target's lanes) or more")
        self._floors()
        self._ceilings()
        check_methods(self.name, self.compensate)

    def _check_share(self, name: str) -> None:
        if not 0 < (value := getattr(self, name)) <= 1:
            meaning = (
                "the share of channels to remove" if name == "ratio" else f"the share of {_WORDS[name]} that remains"
            )
            raise UsageError(self.name, f"{_dashed(name)} is {value:g}", f"expected {meaning}, above 0 and at most 1")

    def _check_word(self, option: str, known) -> None:
        word = getattr(self, option)
        if word is not None and word not in known:
            hint = did_you_mean(word, known) or f"it has: {', '.join(known)}"
            raise UsageError(self.name, f"unknown {option} '{word}'", hint)

    def _floors(self) -> list[Share]:
        return [Share.parse(text, self.name, "floor") for text in self.floor]

    def _ceilings(self) -> list[Share]:
        return [Share.parse(text, self.name, "ceiling") for text in self.ceiling]

    def needed(self) -> frozenset[str]:
        """Some criteria need data, and so does compensation."""
        return self.needs | (NEEDS[self.importance] & {"data"}) | ({"data"} if self.compensate else set())

    def targets(self) -> dict[str, float]:
        """The targets that are given, by option."""
        return {name: value for name in ("ratio", *QUANTITIES) if (value := getattr(self, name)) is not None}

    def run(self, graph: Graph, ctx: Context) -> Result:
        """Cut the graph.

        Raises UsageError for a target out of reach or in a gap between two reachable values, a selector without a match
        or a meaning, a model of which nothing can be removed, and weights that are not finite; VerifyError naming the
        node where the proof fails.
        """
        check_finite(graph, self.name)
        with eval_form(graph):  # dropout would make the proof's two graphs differ
            before, whole = cost(graph), Snapshot.of(graph)
            original = graph.copy() if self.compensate else graph
            index = IndexGraph(graph, keep=self._kept(graph))
            evidence = gather(graph, ctx, self.importance, self.name)
            groups, scores = ranked(index, self.importance, evidence, self.normalizer)
            request = self._request(groups, ctx)
            choice = choose(groups, scores, request)
            alive = self._spend(groups, choice.alive, ctx)
            atoms, survivors = groups.alive_atoms(alive), Survivors()
            done: dict[str, Any] = {"proof_error": 0.0}
            if not alive.all():
                survivors = cut(index, atoms)
                done["proof_error"] = prove(whole, index, atoms, self.seed)
                if self.compensate:
                    done["compensation"] = compensate(original, graph, index, atoms, ctx, self.compensate)
        facts = details(groups, alive, choice, self.targets(), before, cost(graph)) | done
        return Result(int((~alive).sum()), tuple(skips(groups, request)), facts, survivors=survivors)

    @property
    def _scope(self) -> str:
        return self.scope or ("layer" if self.ratio is not None else "global")

    def _request(self, groups: Groups, ctx: Context) -> Request:
        lanes = ctx.target.lanes if ctx.target is not None else 1
        return Request.of(
            groups,
            self._scope,
            ratio=self.ratio,
            shares={name: share for name, share in self.targets().items() if name != "ratio"},
            rounding=Rounding(self.round_to or lanes, explicit=bool(self.round_to)),
            floors=self._floors(),
            ceilings=self._ceilings(),
            only=self.only,
            together=self.groups,
        )

    def _kept(self, graph: Graph) -> list[str]:
        """The weights that `keep` names. Raises UsageError for a pattern without a match, or one `only` names too."""
        if self.keep and self.only:
            refuse_overlap(graph.weights, self.keep, self.only)
        return select(graph.weights, self.keep, self.name, "keep")

    def _spend(self, groups: Groups, alive: np.ndarray, ctx: Context) -> np.ndarray:
        """Each family that shrinks is one rewrite: without fuel it stays whole."""
        alive = alive.copy()
        for family in groups.families:
            if not alive[family.groups].all() and not ctx.fuel.take():
                alive[family.groups] = True
        return alive


_WORDS = {"macs": "MACs", "params": "parameters", "bytes": "bytes", "peak_memory": "peak memory"}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def check_finite(graph: Graph, where: str) -> None:
    """Raises UsageError naming a parameter with NaN or infinity, or a buffer with NaN."""
    for name, weight in graph.weights.items():
        if not weight.is_floating_point() or isfinite(weight.detach().sum().item()):  # no sum hides NaN or infinity
            continue
        is_bad = ~torch.isfinite(weight) if isinstance(weight, torch.nn.Parameter) else torch.isnan(weight)
        if bool(is_bad.any()):
            count = int(is_bad.sum())
            what = f"weight '{name}' holds {count} values that are NaN or infinite"
            raise UsageError(where, what, "expected finite weights", "check how the model was trained or loaded")
