"""How latency grows with the size of the image and with the batch, against multiply-accumulates; plotted.

    python benchmarks/scaling.py [--models NAME ...] [--precision float] [--out scaling.png] [--json FILE] [--rounds 10]

Sizes 64 to 512 at batch 1, and batches 1 to 64 at 128 pixels, one thread, in one run: each round times every size once.
Printed: milliseconds per billion multiply-accumulates, and how far each is from the least squares line through those
points whose activations are larger than the second-level cache.
"""

import argparse
import json
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from models import MODELS
from rich.console import Console
from rich.table import Table
from timing import interleaved

import planish
from latency import RECIPES
from planish.backends.tvm.threads import set_threads
from planish.ir.cost import cost

SIZES = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
BATCH_SIZE = 128  # pixels of the images of a batch


@dataclass(frozen=True)
class Point:
    """One size: its multiply-accumulates, least and median milliseconds, and whether activations exceed the cache."""

    size: int
    batch: int
    macs: int
    least: float
    median: float
    is_large: bool


def measure(name: str, sizes: list[tuple[int, int]], precision: str, rounds: int) -> list[Point]:
    cache = planish.Target.get("local").l2_kib * 1024
    calls, facts = {}, {}
    for batch, size in sizes:
        model, x = MODELS[name](batch, size)
        captured = planish.capture(model, (x,))
        context = planish.Context(data=[x[:1]], target=planish.Target.get("local"))
        graph = planish.Pipeline.parse(RECIPES[precision]).run(captured, context).graph
        compiled = planish.compile(graph, recipe="", batch=batch)
        counted = cost(captured, batch)
        key = f"{batch} x {size}"
        facts[key] = batch, size, counted.macs, counted.peak_bytes > cache
        calls[key] = lambda compiled=compiled, x=x: compiled(x)
    timings = interleaved(calls, rounds, calls=2)
    return [
        Point(size, batch, macs, timings[key].least, timings[key].median, is_large)
        for key, (batch, size, macs, is_large) in facts.items()
    ]


def off_line(points: list[Point]) -> list[float]:
    """Each point's time over that of the line a + b * macs through the large ones, fitted to relative errors."""
    large = [p for p in points if p.is_large]
    if len(large) < 3:
        return [1.0] * len(points)
    rows = np.array([[1 / p.least, p.macs / p.least] for p in large])
    (start, slope), *_ = np.linalg.lstsq(rows, np.ones(len(large)), rcond=None)
    return [p.least / (start + slope * p.macs) for p in points]


def table(name: str, points: list[Point]) -> Table:
    shown = Table(title=f"{name}: ms per GMAC, and time / line", title_justify="left")
    for heading in ("batch", "pixels", "GMACs", "least ms", "median ms", "ms / GMAC", "beyond L2", "time / line"):
        shown.add_column(heading, justify="right")
    for p, ratio in zip(points, off_line(points), strict=True):
        per = f"{p.least / p.macs * 1e9:.2f}"
        figures = (
            f"{p.macs / 1e9:.3f}",
            f"{p.least:.2f}",
            f"{p.median:.2f}",
            per,
            "yes" if p.is_large else "",
            f"{ratio:.2f}",
        )
        shown.add_row(str(p.batch), str(p.size), *figures)
    return shown


def plot(series: dict[str, list[Point]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    for label, points in series.items():
        macs = [p.macs / 1e9 for p in points]
        axes[0].loglog(macs, [p.least for p in points], "o-", label=label, markersize=4)
        axes[1].semilogx(macs, off_line(points), "o-", label=label, markersize=4)
    axes[0].set(xlabel="billion multiply-accumulates", ylabel="milliseconds, least", title="latency")
    axes[1].set(xlabel="billion multiply-accumulates", ylabel="time / line", title="distance from the line")
    for bound in (0.85, 1.15):
        axes[1].axhline(bound, color="gray", linewidth=0.8, linestyle="--")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["efficientnet-lite0", "resnet18"], choices=list(MODELS))
    parser.add_argument("--precision", default="float", choices=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("scaling.png"))
    parser.add_argument("--json", type=Path)
    chosen, console = parser.parse_args(), Console(width=120)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    set_threads(1)
    series: dict[str, list[Point]] = {}
    for name in chosen.models:
        by_size, by_batch = [(1, size) for size in SIZES], [(batch, BATCH_SIZE) for batch in BATCHES]
        for label, sizes in ((f"{name}, image size", by_size), (f"{name}, batch", by_batch)):
            series[label] = measure(name, sizes, chosen.precision, chosen.rounds)
            console.print(table(label, series[label]))
            worst = max(abs(r - 1) for r, p in zip(off_line(series[label]), series[label], strict=True) if p.is_large)
            console.print(f"largest distance from the line beyond the cache: {100 * worst:.0f} %")
    plot(series, chosen.out)
    if chosen.json:
        chosen.json.write_text(json.dumps({k: [vars(p) for p in points] for k, points in series.items()}, indent=1))
    spread = [p.median / p.least for points in series.values() for p in points]
    console.print(f"median over least, all points: {statistics.median(spread):.2f}; plot in {chosen.out}")


if __name__ == "__main__":
    main()
