"""Where gradual pruning is, on disk: the graph as the last cut left it, and what the optimizer remembers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir.graph import Graph
from .checkpoint import Checkpoints, Snapshot
from .optimizers import OptimizerState


@dataclass
class Round:
    """What is known after a cut.

    number    cuts so far
    whole     what the model cost before the first, by target
    channels  the share of the channels that is left
    momentum  what the optimizer remembers of the weights that are left
    facts     for the report, by cut
    """

    number: int
    whole: dict[str, int]
    channels: float
    momentum: OptimizerState
    facts: list[dict[str, Any]]


class Rounds:
    """The checkpoints between cut and training. Those inside of a training are its own."""

    def __init__(self, folder: Path, identity: Mapping[str, str]):
        self._checkpoints = Checkpoints(folder / "cuts", identity)

    def save(self, graph: Graph, done: Round) -> None:
        numbers = dataclasses.asdict(dataclasses.replace(done, momentum={}))
        self._checkpoints.save(done.number, Snapshot({}, done.momentum, {}, numbers, graph=graph))

    def resume(self, graph: Graph) -> Round | None:
        """Let the graph be as the last cut left it. None where no cut was saved."""
        found = self._checkpoints.load()
        if found is None:
            return None
        assert found.graph is not None
        graph.module, graph.properties = found.graph.module, found.graph.properties
        return Round(**{**found.numbers, "momentum": found.optimizer})
