"""The time of calibrating EfficientNet-Lite0 as a multiple of running it over the same images, per observer.

    python benchmarks/calibration.py IMAGES [--samples 100] [--batch 10] [--rounds 5] [--json]

`IMAGES` is a folder of ImageNet photographs with `labels.json`. Candidates take turns, so that all of a round meet the
same machine; ratios are taken within a round, and their median counts. Forward passes are those of the PyTorch model
as it is loaded; the folded graph, which calibration itself runs, is a row of its own. One thread.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from data import imagenet, normalise_lite0
from models import efficientnet_lite0
from rich.console import Console
from rich.table import Table

import planish
from planish.passes.quantize.observers import OBSERVERS

Run = Callable[[], object]
FORWARD = "forward passes"


def candidates(batches: list[torch.Tensor]) -> dict[str, Run]:
    """What is timed, by name; a calibration returns its output's signal to noise in decibels."""
    model, _ = efficientnet_lite0()
    captured = planish.capture(model, (batches[0],))
    folded = planish.Pipeline.parse("canonicalize, fold-batch-norm").run(captured).graph
    quantized = planish.Pipeline.parse("insert-fake-quant").run(folded).graph

    def forward(run: Callable[[torch.Tensor], object]) -> Run:
        return lambda: [run(batch) for batch in batches] and None

    def calibration(observer: str) -> Run:
        pipeline = planish.Pipeline.parse(f"calibrate{{observer={observer}}}")
        return lambda: pipeline.run(quantized, planish.Context(data=batches)).steps[0].result.details["output_snr_db"]

    runs = {FORWARD: forward(model), "folded graph": forward(folded)}
    return runs | {observer: calibration(observer) for observer in OBSERVERS}


def measure(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, float | None]]:
    """Per candidate the median seconds, the median of its ratios to forward passes, and what it returned."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    returned = {}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            returned[name] = runs[name]()
            taken[name].append(time.perf_counter() - started)
    ratios = {name: [a / b for a, b in zip(t, taken[FORWARD], strict=True)] for name, t in taken.items()}
    return {
        name: {
            "seconds": statistics.median(taken[name]),
            "ratio": statistics.median(ratios[name]),
            "output_snr_db": returned[name],
        }
        for name in runs
    }


def table(found: dict[str, dict[str, float | None]]) -> Table:
    rows = Table("", "median s", "of forward passes", "output, dB")
    for name, row in found.items():
        decibels = "" if row["output_snr_db"] is None else f"{row['output_snr_db']:.1f}"
        rows.add_row(name, f"{row['seconds']:.2f}", f"{row['ratio']:.2f}", decibels)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    images = normalise_lite0(imagenet(chosen.images)[: chosen.samples].pixels)
    runs = candidates(list(images.split(chosen.batch)))
    for run in runs.values():  # caches warm
        run()
    found = measure(runs, chosen.rounds)
    if chosen.json:
        print(json.dumps(found))
        return
    console = Console(width=100)
    console.print(table(found))
    console.print(f"EfficientNet-Lite0, {len(images)} images in batches of {chosen.batch}, one thread. Ratios are to")
    console.print("eager forward passes of the PyTorch model as it is loaded, batch norms and all, in the same round.")


if __name__ == "__main__":
    main()
