"""Structured pruning side by side with Torch-Pruning, on real images.

    python benchmarks/pruning.py DATA_FOLDER [--only fine-tuned] [--seeds 3] [--results FOLDER] [--cache FOLDER]

`fine-tuned`: ResNet-20 on CIFAR-10 (`DATA_FOLDER/cifar10`) at three shares of the MACs, same criterion, same
fine-tuning: 3 epochs for each of 18 networks or more, a minute each of one core. Every run is stored, and a second call
goes on where the first one stopped. `untrained`: the same network, and EfficientNet-Lite0 on photographs
(`DATA_FOLDER/imagenet-mini`), without labels and without fine-tuning, by scope and by compensation.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import pruning_resnet20
import pruning_untrained
import torch
from rich.console import Console


def options() -> argparse.Namespace:
    scratch = Path(tempfile.gettempdir()) / "planish-pruning"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with cifar10/ and imagenet-mini/")
    parser.add_argument("--only", choices=("fine-tuned", "untrained"), help="one part")
    parser.add_argument("--cache", type=Path, default=scratch, help="where decoded images are kept")
    parser.add_argument("--results", type=Path, default=scratch / "results", help="where fine-tuned runs are stored")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each network")
    parser.add_argument("--shares", type=float, nargs="+", default=pruning_resnet20.SHARES, help="of the MACs")
    pruners = tuple(pruning_resnet20.PRUNERS)
    parser.add_argument(
        "--pruners", nargs="+", choices=pruners, default=pruners[:2], help="whose networks to fine-tune"
    )
    return parser.parse_args()


def fine_tuned(chosen: argparse.Namespace, console: Console) -> None:
    found = []
    args = (chosen.cache, chosen.results, chosen.pruners, chosen.shares, chosen.seeds)
    for run in pruning_resnet20.runs(chosen.data / "cifar10", *args):
        found.append(run)
        accuracies = f"{run.before:.2f} -> {run.after:.2f} %"
        console.log(f"{run.pruner}, {run.share:g}, seed {run.seed}: {accuracies}, {run.seconds:.0f} s")
    console.print(pruning_resnet20.table(found))


def untrained(chosen: argparse.Namespace, console: Console) -> None:
    resnet20 = pruning_untrained.resnet20_cifar10(chosen.data / "cifar10", chosen.cache)
    for case in (resnet20, pruning_untrained.lite0(chosen.data / "imagenet-mini")):
        rows = []
        for row in pruning_untrained.scores(case):
            rows.append(row)
            console.log(" ".join(row))
        console.print(pruning_untrained.table(case.title, rows))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen, console = options(), Console(width=120)
    for name, part in (("fine-tuned", fine_tuned), ("untrained", untrained)):
        if chosen.only in (None, name):
            part(chosen, console)


if __name__ == "__main__":
    main()
