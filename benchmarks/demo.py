"""The main job: a pretrained EfficientNet-Lite0 in, a thinner one out, for this machine and a Pi 4.

    python benchmarks/demo.py

Folds batch norm, prunes 30 % of the multiply-accumulates, reconstructs the layers behind the cut and calibrates eight
bits on crops of two real photographs (they come with scikit-learn), compiles with TVM, runs here and on the emulated
Pi, and prints one table. Nothing is fine-tuned: what pruning costs in agreement is shown as it is.
"""

import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from models import efficientnet_lite0
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_sample_images

import planish
from planish.backends.tvm.threads import set_threads

CROP = 224
FOLD = "canonicalize, fold-batch-norm"
PRUNE = f"{FOLD}, prune-channels{{macs=0.7, compensate=[reconstruct]}}"
INTEGERS = f"{PRUNE}, insert-fake-quant, calibrate, lower-integers"
RECIPES = {"original": FOLD, "pruned": PRUNE, "pruned, int8": INTEGERS}
TARGETS = {"local": "here", "raspberry-pi-4": "Pi 4, emulated"}
RUNS = 60


@dataclass(frozen=True)
class Row:
    """One compiled variant on one machine."""

    variant: str
    machine: str
    report: planish.Report
    latency_ms: float | None
    max_error: float
    agreement: float


def photograph_crops(count: int, seed: int) -> torch.Tensor:
    """Random square crops of scikit-learn's two photographs, resized and normalised: [count, 3, 224, 224]."""
    random = np.random.default_rng(seed)
    photographs = load_sample_images().images
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        height, width, _ = photograph.shape
        side = int(random.integers(CROP, min(height, width) + 1))
        top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
        crop = torch.from_numpy(photograph[top : top + side, left : left + side].astype(np.float32)).permute(2, 0, 1)
        crops.append(torch.nn.functional.interpolate(crop[None], CROP, mode="bilinear", antialias=True))
    return (torch.cat(crops) - 127) / 128


def agreement(ours: torch.Tensor, original: torch.Tensor) -> float:
    """The share of the original's five best classes that are among ours, in percent."""
    mine, theirs = ours.topk(5).indices, original.topk(5).indices
    return float((mine[:, :, None] == theirs[:, None, :]).any(1).float().mean()) * 100


def latency(compiled: planish.CompiledModel, image: torch.Tensor) -> float:
    """Median milliseconds of one thread."""
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        compiled(image)
        taken.append((time.perf_counter() - started) * 1e3)
    return float(np.median(taken[RUNS // 6 :]))


def measure(variant: str, target: str, thin: planish.Graph, images: torch.Tensor, original: torch.Tensor) -> Row:
    """Compile one graph for one target, run it on `images`, and compare with PyTorch and with the original model."""
    here = target == "local"
    compiled = planish.compile(thin, images[:1], recipe="", target=target)
    images = images if here else images[:4]  # the emulator takes seconds for an image
    outputs = torch.cat([compiled(image[None]) for image in images])
    with torch.no_grad():
        wanted = thin(images)
    return Row(
        variant=variant,
        machine=TARGETS[target],
        report=compiled.report,
        latency_ms=latency(compiled, images[:1]) if here else None,
        max_error=float((outputs - wanted).abs().max()),
        agreement=agreement(outputs, original[: len(images)]),
    )


def table(rows: Iterable[Row]) -> Table:
    shown = Table(title="EfficientNet-Lite0, one thread, batch 1", title_justify="left")
    for heading in ("", "on", "parameters", "MACs", "weights", "peak RAM", "ms here", "instruction",
                    "max error", "top-5", "int8 kernels"):  # fmt: skip
        shown.add_column(heading, justify="left" if heading in ("", "on", "instruction") else "right")
    for row in rows:
        cost, facts = row.report.after, row.report.facts
        memory = facts["arena_bytes"] + facts.get("workspace_bytes", 0) + facts["weight_bytes"]
        own = [layer for layer in row.report.layers if not layer["kernel"].startswith("TVM")]
        instructions = [layer["instruction"] for layer in own]
        shown.add_row(
            row.variant,
            row.machine,
            f"{cost['params'] / 1e6:.2f} M",
            f"{cost['macs'] / 1e6:.0f} M",
            f"{cost['bytes'] / 2**20:.1f} MiB",
            f"{memory / 2**20:.1f} MiB",
            f"{row.latency_ms:.2f}" if row.latency_ms is not None else "-",
            max(set(instructions), key=instructions.count),
            f"{row.max_error:.1e}",
            f"{row.agreement:.0f} %",
            row.report.int8_kernels,
        )
    return shown


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    set_threads(1)
    console = Console(width=140)
    model, _ = efficientnet_lite0()
    calibration, images = photograph_crops(64, seed=0), photograph_crops(32, seed=1)
    original = model(images)
    captured = planish.capture(model, (images[:1],))
    context = planish.Context(data=list(calibration.split(8)))
    thinned = {
        variant: planish.Pipeline.parse(recipe).run(captured, context).graph
        for variant, recipe in track(RECIPES.items(), "thinning", console=console, transient=True)
    }
    jobs = [(variant, target) for variant in RECIPES for target in TARGETS]
    rows = [
        measure(variant, target, thinned[variant], images, original)
        for variant, target in track(jobs, "compiling and running", console=console, transient=True)
    ]
    console.print(table(rows))
    console.print(f"recipe: {INTEGERS}", markup=False)
    console.print("max error: against PyTorch running the same graph.")
    console.print("top-5: agreement with the original model on crops it was not calibrated on; nothing was fine-tuned.")


if __name__ == "__main__":
    main()
