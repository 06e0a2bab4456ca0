"""ResNet-20 on CIFAR-10, pruned by both pruners and fine-tuned alike: one result per pruner, share and seed."""

import copy
import hashlib
import json
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from data import Images, cifar10, normalise_cifar
from pruning_methods import Pruner, by_planish, by_torch_pruning, macs
from pruning_training import Recipe, accuracy, finetune
from resnet20 import resnet20
from rich.table import Table
from torch import nn

SHARES = (0.7, 0.5, 0.35)
PRUNERS: dict[str, Pruner] = {
    "planish": by_planish("l1"),
    "Torch-Pruning": by_torch_pruning("l1"),
    "Torch-Pruning, global": by_torch_pruning("l1", global_pruning=True),
}
SIZE = (1, 3, 32, 32)


@dataclass(frozen=True)
class Run:
    """One fine-tuning. `network` is a digest of the pruned network: a stored result counts for that one only."""

    pruner: str
    share: float
    seed: int
    network: str
    recipe: dict
    macs_share: float
    before: float
    after: float
    seconds: float


def runs(
    folder: Path, cache: Path, results: Path, pruners: Iterable[str], shares: Iterable[float], seeds: int
) -> Iterator[Run]:
    """Yield every run, stored or made now; one that ends is written aside and renamed, so a stop loses one at most."""
    train, test = (cifar10(folder, split, cache) for split in ("train", "test"))
    model = resnet20(folder / "resnet20.safetensors")
    pruned = {(name, share): PRUNERS[name](model, torch.zeros(SIZE), share) for share in shares for name in pruners}
    full = macs(model, torch.zeros(SIZE))
    for seed in range(seeds):
        for (name, share), network in pruned.items():
            path = results / f"resnet20-{name.replace(', ', '-').lower()}-{share:g}-{seed}.json"
            run = _stored(path, digest(network), Recipe())
            if run is None:
                run = _run(name, share, seed, network, full, train, test)
                _store(path, run)
            yield run


def _run(name: str, share: float, seed: int, pruned: nn.Module, full: int, train: Images, test: Images) -> Run:
    network, recipe = copy.deepcopy(pruned), Recipe()
    before, started = accuracy(network, test, normalise_cifar), time.perf_counter()
    finetune(network, train, normalise_cifar, recipe, seed)
    return Run(
        pruner=name,
        share=share,
        seed=seed,
        network=digest(pruned),
        recipe=asdict(recipe),
        macs_share=macs(pruned, torch.zeros(SIZE)) / full,
        before=before,
        after=accuracy(network, test, normalise_cifar),
        seconds=time.perf_counter() - started,
    )


def digest(model: nn.Module) -> str:
    """Of the names and values of all parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name}{list(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _stored(path: Path, network: str, recipe: Recipe) -> Run | None:
    if not path.is_file():
        return None
    run = Run(**json.loads(path.read_text(encoding="utf-8")))
    return run if run.network == network and run.recipe == asdict(recipe) else None


def _store(path: Path, run: Run) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(asdict(run), indent=1), encoding="utf-8")
    os.replace(aside, path)


def table(found: list[Run]) -> Table:
    shown = Table(title="ResNet-20, CIFAR-10: test accuracy in percent, mean (deviation)", title_justify="left")
    for heading in ("MACs wanted", "pruner", "MACs left", "before", "after fine-tuning", "seeds"):
        shown.add_column(heading, justify="left" if heading == "pruner" else "right")
    for share, pruner in dict.fromkeys((run.share, run.pruner) for run in found):
        own = [run for run in found if (run.share, run.pruner) == (share, pruner)]
        after = [run.after for run in own]
        spread = f" ({statistics.stdev(after):.2f})" if len(after) > 1 else ""
        shown.add_row(
            f"{share:g}",
            pruner,
            f"{own[0].macs_share:.4f}",
            f"{own[0].before:.2f}",
            f"{statistics.mean(after):.2f}{spread}",
            str(len(own)),
        )
    return shown
