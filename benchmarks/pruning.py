"""Structured pruning side by side with Torch-Pruning, on real images.

    python benchmarks/pruning.py DATA_FOLDER [--only resnet20] [--seeds 3] [--results FOLDER] [--cache FOLDER]

ResNet-20 on CIFAR-10 (`DATA_FOLDER/cifar10`) at three shares of the MACs, same criterion, same fine-tuning: 3 epochs
for each of 18 networks or more, a minute each of one core. Every run is stored, and a second call goes on where the
first one stopped. EfficientNet-Lite0 (`DATA_FOLDER/imagenet-mini`) without labels and without fine-tuning.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import pruning_lite0
import pruning_resnet20
import torch
from rich.console import Console


def options() -> argparse.Namespace:
    scratch = Path(tempfile.gettempdir()) / "planish-pruning"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with cifar10/ and imagenet-mini/")
    parser.add_argument("--only", choices=("resnet20", "lite0"), help="one of the two tables")
    parser.add_argument("--cache", type=Path, default=scratch, help="where decoded images are kept")
    parser.add_argument("--results", type=Path, default=scratch / "results", help="where runs are stored")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each network")
    parser.add_argument("--shares", type=float, nargs="+", default=pruning_resnet20.SHARES, help="of the MACs")
    pruners = tuple(pruning_resnet20.PRUNERS)
    parser.add_argument("--pruners", nargs="+", choices=pruners, default=pruners, help="for ResNet-20")
    return parser.parse_args()


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen, console = options(), Console(width=120)
    if chosen.only != "lite0":
        found = []
        folder = chosen.data / "cifar10"
        args = (chosen.cache, chosen.results, chosen.pruners, chosen.shares, chosen.seeds)
        for run in pruning_resnet20.runs(folder, *args):
            found.append(run)
            accuracies = f"{run.before:.2f} -> {run.after:.2f} %"
            console.log(f"{run.pruner}, {run.share:g}, seed {run.seed}: {accuracies}, {run.seconds:.0f} s")
        console.print(pruning_resnet20.table(found))
    if chosen.only != "resnet20":
        console.print(pruning_lite0.table(chosen.data / "imagenet-mini"))


if __name__ == "__main__":
    main()
