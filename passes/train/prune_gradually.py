"""prune-gradually: to the target in several cuts, with training after each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...ir.cost import cost
from ...ir.errors import UsageError
from ...ir.graph import Graph
from ..base import Context, Pass, Result, Skip
from ..pipeline_text import did_you_mean, make, read_options
from ..prune.prune_channels import PruneChannels
from .checkpoint import weights_digest
from .finetune import Finetune
from .optimizers import OptimizerState
from .pace import PACES
from .processes import Processes
from .rounds import Round, Rounds

# Target -> the field of a graph's cost that it is a share of.
COSTS = {"macs": "macs", "params": "params", "bytes": "bytes", "peak_memory": "peak_bytes"}


@dataclass(frozen=True)
class PruneGradually(Pass):
    """Cut and fine-tune in turns until the targets are met; momentum of what survives a cut goes on.

    before:  %y = conv2d(%x, w[64,32,3,3], b[64])
    after:   %y = conv2d(%x, w[32,16,3,3], b[32]), trained after each of the cuts
    skips:   what prune-channels skips; a cut whose target a small model cannot meet, the last one excepted

    Each cut is a `prune-channels`, so the last one meets the target within 0.5 % and every one is proved.
    """

    name: ClassVar[str] = "prune-gradually"
    needs: ClassVar[frozenset[str]] = frozenset({"data"})
    drops: ClassVar[frozenset[str]] = PruneChannels.drops
    refuses: ClassVar[frozenset[str]] = PruneChannels.refuses

    ratio: float | None = None
    """The share of channels to REMOVE in the end, in (0, 1]."""
    macs: float | None = None
    """The share of the multiply-accumulates that remains in the end, in (0, 1]."""
    params: float | None = None
    """The share of the parameters that remains in the end."""
    bytes: float | None = None
    """The share of the bytes of weights and buffers that remains in the end."""
    peak_memory: float | None = None
    """The share of the peak memory of activations that remains in the end."""
    cuts: int = 4
    """How many cuts, each followed by training."""
    pace: str = "polynomial"
    """polynomial: large cuts first, small ones at the end (Zhu and Gupta, 2017; power 3). geometric: each leaves the
    same share. one-shot: one cut."""
    prune: str = ""
    """Further options of prune-channels, such as `"importance=taylor, keep=[stem]"`."""
    finetune: str = ""
    """Options of finetune for each training, such as `"epochs=2, lr=0.01"`; its schedule starts anew each time."""
    checkpoint: str = ""
    """A folder. State is saved there, and a run with the same options that finds it goes on exactly from it."""

    def __post_init__(self) -> None:
        if self.pace not in PACES:
            hint = did_you_mean(self.pace, PACES) or f"it has: {', '.join(PACES)}"
            raise UsageError(self.name, f"unknown pace '{self.pace}'", hint)
        if self.cuts < 1:
            raise UsageError(self.name, f"cuts is {self.cuts}", "expected 1 or more")
        self.pruning(self.targets())
        if self.training("").checkpoint:
            raise UsageError(self.name, "'checkpoint' is among the options of finetune", "give it to prune-gradually")

    def targets(self) -> dict[str, float]:
        """The final targets, by option."""
        return {name: value for name in ("ratio", *COSTS) if (value := getattr(self, name)) is not None}

    def pruning(self, targets: dict[str, float]) -> PruneChannels:
        """One cut. Raises UsageError for targets and options that prune-channels does not have, and those that would
        mean another share after each cut."""
        options = read_options(PruneChannels.name, self.prune)
        if twice := sorted({"ratio", *COSTS} & {name.replace("-", "_") for name in options}):
            what = f"'{twice[0].replace('_', '-')}' is among the options of prune-channels"
            raise UsageError(self.name, what, "give targets to prune-gradually")
        made = make(PruneChannels.name, {**options, **targets})
        assert isinstance(made, PruneChannels)
        if made.floor or made.ceiling:
            what = "'floor' or 'ceiling' is among the options of prune-channels"
            raise UsageError(self.name, what, "they are shares of the model before each cut", "use 'keep' or 'only'")
        return made

    def training(self, checkpoint: str) -> Finetune:
        """One training. Raises UsageError for options that finetune does not have."""
        options = read_options(Finetune.name, self.finetune)
        made = make(Finetune.name, {**options, "checkpoint": checkpoint} if checkpoint else options)
        assert isinstance(made, Finetune)
        return made

    def needed(self) -> frozenset[str]:
        return self.needs | self.training("").needed()

    def is_repeatable(self) -> bool:
        return self.training("").is_repeatable()

    def run(self, graph: Graph, ctx: Context) -> Result:
        """Cut and train. `changed` counts the groups that went.

        Raises what prune-channels and finetune raise, and UsageError for a checkpoint of another run.
        """
        if not ctx.fuel.take():
            return Result(0)
        processes, rounds = Processes(graph, 0, self.name), self._rounds(graph)
        latest = rounds.resume(graph) if rounds else None
        processes.agree(latest.number if latest else -1, self.name)
        done = latest or Round(0, _costs(graph), 1.0, {}, [])
        plan = self._plan()
        skipped: dict[Skip, None] = {}
        for number in range(done.number, len(plan) + 1):
            if number:
                trained, remembered = self._train(graph, ctx, done, number)
                done.facts[-1] |= {"finetune": trained.details}
                done.momentum = remembered
            if number < len(plan):
                skipped |= dict.fromkeys(self._cut(graph, ctx, done, plan[number]))
                done.number = number + 1
                if rounds and processes.is_main:
                    rounds.save(graph, done)
                processes.wait()
        groups = sum(facts["groups_removed"] for facts in done.facts)
        return Result(groups, tuple(skipped), {"cuts": done.facts, **_reached(graph, done.whole)})

    def _train(self, graph: Graph, ctx: Context, done: Round, number: int) -> tuple[Result, OptimizerState]:
        folder = str(Path(self.checkpoint) / f"after-cut-{number}") if self.checkpoint else ""
        return self.training(folder).train(graph, ctx, done.momentum)

    def _plan(self) -> list[dict[str, float]]:
        """For each cut the share of each quantity (of channels for `ratio`) that remains of the whole model."""
        shares = {name: 1 - value if name == "ratio" else value for name, value in self.targets().items()}
        paths = {name: PACES[self.pace](share, self.cuts) for name, share in shares.items()}
        return [dict(zip(paths, values, strict=True)) for values in zip(*paths.values(), strict=True)]

    def _cut(self, graph: Graph, ctx: Context, done: Round, remaining: dict[str, float]) -> tuple[Skip, ...]:
        """Prune to shares of the whole model, from what is left of it."""
        now, targets = _costs(graph), {}
        for name, share in remaining.items():
            left = done.channels if name == "ratio" else _share(now, done.whole, name)
            if share < left:
                targets[name] = 1 - share / left if name == "ratio" else share / left
        result = self._pruned(graph, ctx, targets, done.number + 1)
        before, after = result.details.get("groups", (1, 1))
        done.channels *= after / max(before, 1)
        done.momentum = {
            name: {key: _thinned(result, name, key, value) for key, value in state.items()}
            for name, state in done.momentum.items()
            if name in graph.weights
        }
        done.facts.append({"groups_removed": result.changed, **_reached(graph, done.whole)})
        return result.skipped

    def _pruned(self, graph: Graph, ctx: Context, targets: dict[str, float], cut: int) -> Result:
        """Small models have gaps between the shares that they can be pruned to: only the last target has to be met."""
        if not targets:
            return Result(0)
        try:
            return self.pruning(targets).run(graph, ctx)
        except UsageError as refusal:  # of a target; nothing has been cut
            if cut == self._cuts:
                raise
            return Result(0, (Skip(f"cut {cut}", f"it is left out: {refusal}"),))

    @property
    def _cuts(self) -> int:
        return len(self._plan())

    def _rounds(self, graph: Graph) -> Rounds | None:
        if not self.checkpoint:
            return None
        options = self.options()
        del options["checkpoint"]
        return Rounds(Path(self.checkpoint), {"list of options": str(options), "model": weights_digest(graph)})


def _thinned(result: Result, name: str, key: str, value: Any) -> Any:
    """What an optimizer remembers of each entry of a weight has the weight's shape; a count of steps has none."""
    return value if value.ndim == 0 or name not in result.survivors else result.survivors[name].take(value)


def _costs(graph: Graph) -> dict[str, int]:
    """What targets are shares of, by option."""
    found = cost(graph)
    return {name: getattr(found, field) for name, field in COSTS.items()}


def _share(now: Mapping[str, int], whole: Mapping[str, int], name: str) -> float:
    return now[name] / max(whole[name], 1)


def _reached(graph: Graph, whole: Mapping[str, int]) -> dict[str, float]:
    """The shares of the whole model that are left."""
    now = _costs(graph)
    return {name: _share(now, whole, name) for name in COSTS}
