"""Checkpoints: all that a training needs to go on exactly where it was. Tensors as safetensors, numbers as JSON.

A folder holds `step-00000120/` with `weights`, `optimizer`, `random` and, with early stopping, `best` .safetensors and
`state.json`; gradual pruning adds `graph.planish`. Each checkpoint is written aside and renamed, so that whatever is
there is whole; the last two are kept.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...ir.errors import UsageError
from ...ir.files import write_aside
from ...ir.graph import Graph
from .optimizers import OptimizerState
from .training_form import unique_weights

FORMAT = 1
KEPT = 2
STATE, GRAPH = "state.json", "graph.planish"
ADVICE = "remove it, or name another folder"
_FOLDER = re.compile(r"step-(\d{8,})")
_SEPARATOR = "|"  # weight names hold dots


@dataclass
class Snapshot:
    """weights: parameters and buffers. random: each process's generators, `0.cpu`, ... numbers: JSON-able.

    graph: where a run has changed more than its weights.
    """

    weights: Mapping[str, torch.Tensor]
    optimizer: OptimizerState
    random: Mapping[str, torch.Tensor]
    numbers: dict[str, Any]
    best: Mapping[str, torch.Tensor] = field(default_factory=dict)
    graph: Graph | None = None


class Checkpoints:
    """The checkpoints of one run in a folder.

    identity  what a run must have in common with the one that wrote a checkpoint, by what it is called in a message
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, str]):
        self.folder, self.identity = Path(folder), dict(identity)

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Write a checkpoint and remove all but the last two."""
        target = self.folder / f"step-{step:08d}"
        for left in self.folder.glob(".step-*"):  # of a run that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        with write_aside(target, directory=True) as draft:
            tensors = {"weights": snapshot.weights, "optimizer": _flat(snapshot.optimizer), "random": snapshot.random}
            tensors |= {"best": snapshot.best} if snapshot.best else {}
            for name, values in tensors.items():
                save_file({k: v.detach().cpu().contiguous() for k, v in values.items()}, draft / f"{name}.safetensors")
            if snapshot.graph is not None:
                snapshot.graph.save(draft / GRAPH)
            files = {path.name: _sha256(path) for path in sorted(draft.iterdir())}
            state = {"format": FORMAT, "identity": self.identity, "files": files, "numbers": snapshot.numbers}
            (draft / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for old in self._written()[:-KEPT]:
            shutil.rmtree(old)

    def load(self) -> Snapshot | None:
        """The latest checkpoint; None where there is none yet.

        Raises UsageError naming the file for a damaged checkpoint and for one of another run.
        """
        if not (written := self._written()):
            return None
        folder = written[-1]
        state = self._state(folder / STATE)
        for name, digest in state["files"].items():
            path = folder / name
            if not path.is_file() or _sha256(path) != digest:
                raise UsageError(str(path), "the checkpoint is damaged or incomplete", ADVICE)
        tensors = {name: _tensors(folder / name) for name in state["files"] if name != GRAPH}
        graph = Graph.load(folder / GRAPH) if GRAPH in state["files"] else None
        best = tensors.get("best.safetensors", {})
        try:
            optimizer = _nested(tensors["optimizer.safetensors"])
            weights, random = tensors["weights.safetensors"], tensors["random.safetensors"]
            return Snapshot(weights, optimizer, random, state["numbers"], best, graph)
        except KeyError as error:
            raise UsageError(str(folder), f"the checkpoint has no {error.args[0]}", ADVICE) from error

    def _state(self, path: Path) -> dict[str, Any]:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(str(path), "the checkpoint cannot be read", ADVICE) from error
        keys = {"format", "identity", "files", "numbers"}
        if not isinstance(state, dict) or not keys <= state.keys() or state["format"] != FORMAT:
            raise UsageError(str(path), f"it is no checkpoint of format {FORMAT}", ADVICE)
        for what, value in self.identity.items():
            if (other := state["identity"].get(what)) != value:
                shown = f"{other} and this run's {value}" if len(f"{other}{value}") < 500 else "other than this run's"
                raise UsageError(str(path), f"it is of another run: its {what} is {shown}", ADVICE)
        return state

    def _written(self) -> list[Path]:
        """The checkpoints' folders, the latest last."""
        found = [path for path in self.folder.glob("step-*") if path.is_dir() and _FOLDER.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def weights_digest(graph: Graph) -> str:
    """A hash of the graph's text and all its weights."""
    digest = hashlib.sha256(graph.text().encode())
    for name, tensor in unique_weights(graph).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(state: OptimizerState) -> dict[str, torch.Tensor]:
    return {f"{name}{_SEPARATOR}{key}": value for name, values in state.items() for key, value in values.items()}


def _nested(tensors: Mapping[str, torch.Tensor]) -> OptimizerState:
    state: OptimizerState = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition(_SEPARATOR)
        state.setdefault(name, {})[key] = value
    return state


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(str(path), "the checkpoint cannot be read", ADVICE) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
