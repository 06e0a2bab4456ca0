"""What quantization costs EfficientNet-Lite0, by recipe, and what the accuracy passes bring back.

    python benchmarks/quantization_accuracy.py IMAGENET_FOLDER [--only NAME ...] [--threads 1]

The folder holds 224 x 224 photographs with `labels.json` (see `data.py`). 100 of them, without labels, calibrate, round
and correct; the others are scored. Fake-quantized graphs are what is run: the integer kernels differ in roundings only.
A recipe with round-weights or without data takes some minutes of one core, the others about one.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from data import Images, imagenet, normalise_lite0
from models import efficientnet_lite0
from rich.console import Console
from rich.progress import track
from rich.table import Table

import planish

SEEN, BATCH = 100, 20
FOLD = "canonicalize, fold-batch-norm"
INT8 = "insert-fake-quant, calibrate"
INT4 = "insert-fake-quant{weight-bits=4}, calibrate"
ENDS = "insert-fake-quant{weight-bits=4, first=int8, last=int8}, calibrate"
RECIPES = {
    "float": "",
    "int8": INT8,
    "int8, without data": "insert-fake-quant, calibrate{data=synthesised, samples=16, iterations=100}",
    "int8, corrected": f"{INT8}, correct-bias",
    "int8, rounded": f"{INT8}, round-weights",
    "int8, equalized": f"equalize{{clips=per-channel}}, {INT8}",
    "4-bit weights": INT4,
    "4-bit, corrected": f"{INT4}, correct-bias",
    "4-bit, AdaRound alone": f"{INT4}, round-weights{{refit=false, scales=keep}}",
    "4-bit, rounded": f"{INT4}, round-weights",
    "4-bit, equalized and rounded": f"equalize{{clips=per-channel}}, {INT4}, round-weights",
    "4-bit but first and last": ENDS,
    "4-bit but first and last, rounded": f"{ENDS}, round-weights",
}


@dataclass(frozen=True)
class Row:
    """One recipe: top-1 and how often it answers as float does in percent, decibels of its outputs, seconds."""

    name: str
    top1: float
    agreement: float
    decibels: float
    seconds: float


def measure(images: Images, names: list[str], console: Console) -> Iterator[Row]:
    """A row per recipe, in the order of `RECIPES`."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    seen, scored = images[order[:SEEN]], images[order[SEEN:]]
    data = list(normalise_lite0(seen.pixels).split(BATCH))
    model, image = efficientnet_lite0()
    captured = planish.capture(model, (image,))
    folded = planish.Pipeline.parse(FOLD).run(captured).graph
    exact = outputs(folded, scored)
    ctx = planish.Context(
        data=data,
        original=captured,  # synthesised images follow its batch norms
        progress=lambda items, label: track(list(items), label, transient=True),
    )
    for name in names:
        started = time.perf_counter()
        graph, text = folded, RECIPES[name]
        if text:
            graph = planish.Pipeline.parse(text).run(folded, ctx).graph
        seconds = time.perf_counter() - started
        yield row(name, outputs(graph, scored), exact, scored.labels, seconds)


def row(name: str, found: torch.Tensor, exact: torch.Tensor, labels: torch.Tensor, seconds: float) -> Row:
    answers = found.argmax(1)
    noise = float((found - exact).double().square().sum())
    decibels = float(10 * torch.log10(exact.double().square().sum() / noise)) if noise else float("inf")
    shares = (100 * float((answers == truth).double().mean()) for truth in (labels, exact.argmax(1)))
    return Row(name, *shares, decibels, seconds)


@torch.no_grad()
def outputs(graph: planish.Graph, images: Images) -> torch.Tensor:
    """[images, classes]"""
    return torch.cat([graph(normalise_lite0(part)) for part in images.pixels.split(BATCH)])


def table(rows: list[Row]) -> Table:
    shown = Table(title="EfficientNet-Lite0, 400 photographs, fake-quantized", title_justify="left")
    shown.add_column("recipe")
    for heading in ("top-1, %", "as float, %", "SNR, dB", "passes, s"):
        shown.add_column(heading, justify="right")
    for entry in rows:
        numbers = (f"{entry.top1:.2f}", f"{entry.agreement:.2f}", f"{entry.decibels:.1f}", f"{entry.seconds:.0f}")
        shown.add_row(entry.name, *numbers)
    return shown


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of photographs with labels.json")
    parser.add_argument("--only", nargs="+", choices=tuple(RECIPES), default=list(RECIPES), help="these recipes")
    parser.add_argument("--threads", type=int, default=1)
    chosen, console, rows = parser.parse_args(), Console(width=120), []
    torch.set_num_threads(chosen.threads)
    for entry in measure(imagenet(chosen.data), chosen.only, console):
        rows.append(entry)
        console.log(f"{entry.name}: {entry.top1:.2f} %, {entry.decibels:.1f} dB, {entry.seconds:.0f} s")
    console.print(table(rows))


if __name__ == "__main__":
    main()
