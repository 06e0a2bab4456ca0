"""What float16 costs EfficientNet-Lite0: in PyTorch, which sums in float32, and in the kernels, which sum in float16.

    python benchmarks/half_accuracy.py IMAGENET_FOLDER [--images 500]

The folder holds 224 x 224 photographs with `labels.json` (see `data.py`). The kernels are those of `raspberry-pi-5`:
eight lanes of float16, a rounding after every multiply-add. On x86 they are compiled for this processor, which needs
AVX-512 FP16: the same loops give the same roundings. Takes some minutes of one core.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from data import Images, imagenet, normalise_lite0
from models import efficientnet_lite0
from rich.console import Console
from rich.progress import track
from rich.table import Table

import planish
from planish.backends.build import build
from planish.backends.target import Target, cpu_features
from planish.ir.specialize import fix_batch

RECIPE = "canonicalize, fold-batch-norm, to-half"
Model = Callable[[torch.Tensor], torch.Tensor]


def on_this_machine(graph: planish.Graph) -> Model:
    """The kernels in float16, compiled for this processor. Exits where it has no such arithmetic."""
    here = replace(Target.get("local"), cores=1)
    if here.machine == "x86_64":
        if "avx512_fp16" not in cpu_features():
            raise SystemExit("this processor has no AVX-512 FP16: run it on an ARM board with asimdhp")
        features, options = (*here.features, "asimdhp"), (*here.llvm_features, "+avx512fp16")
        here = replace(here, lanes=4, registers=32, features=features, llvm_features=options)
    elif not here.has_half:
        raise SystemExit("this processor has no half-precision arithmetic")
    artifact = build(fix_batch(graph, 1), here, RECIPE)
    kernels = [layer["kernel"] for layer in artifact.layers]
    assert sum(kernel.startswith("fp16 ") for kernel in kernels) >= 35, kernels
    return lambda x: artifact.run([x])[0]


def logits(model: Model, images: Images, label: str) -> torch.Tensor:
    """[images, classes]"""
    with torch.no_grad():
        batches = track(images.pixels.split(1), label, console=Console(stderr=True))
        return torch.cat([model(normalise_lite0(pixels)) for pixels in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=500)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    images = imagenet(chosen.folder)[: chosen.images]
    model, _ = efficientnet_lite0()
    graph = planish.capture(model, (normalise_lite0(images.pixels[:1]),))
    half = planish.Pipeline.parse(RECIPE).run(graph).graph
    rows = {"float32": graph, "float16, PyTorch": half, "float16, kernels": on_this_machine(half)}
    found = {name: logits(run, images, name) for name, run in rows.items()}
    table = Table(title=f"EfficientNet-Lite0, {len(images)} photographs", title_justify="left")
    for heading in ("", "top-1 %", "as float32 %", "dB"):
        table.add_column(heading, justify="right" if heading else "left")
    wanted = found["float32"]
    for name, got in found.items():
        top1 = 100 * float((got.argmax(1) == images.labels).float().mean())
        same = 100 * float((got.argmax(1) == wanted.argmax(1)).float().mean())
        noise = float((got - wanted).double().square().mean())
        decibels = f"{10 * float(torch.log10(wanted.double().square().mean() / noise)):.1f}" if noise else ""
        table.add_row(name, f"{top1:.1f}", f"{same:.1f}", decibels)
    Console().print(table)


if __name__ == "__main__":
    main()
