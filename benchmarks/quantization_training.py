"""Training through quantizers on real images: ResNet-20 on CIFAR-10 in integers, calibrated alone and trained.

    pip install -e '.[bench,train,peers]'
    python benchmarks/quantization_training.py CIFAR10_FOLDER [--steps 80] [--seeds 2] [--only NAME ...] [--peer]

The folder is described in `data.py`, with `resnet20.safetensors` beside the images. Every row is scored in integers:
the lowered graph, compiled for this machine. All trainings take the same steps of 64 augmented images from the same
calibrated graph, in bfloat16 where products are concerned; 512 images calibrate, and round where weights are rounded.
`--peer` trains torchao's PT2E alike (in float32), for as many steps of the same batches, and scores what it simulates.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from data import Images, cifar10, normalise_cifar
from pruning_training import augment
from quantization_training_peer import pt2e_qat
from resnet20 import resnet20
from rich.console import Console
from rich.table import Table

import planish
from planish.backends.tvm.threads import set_threads

SEEN, BATCH, SCORED = 512, 64, 250
RATES = {8: 0.0001, 4: 0.0005}  # by bits of activations
FOLD = "canonicalize, fold-batch-norm"
SEARCH = "calibrate{{observer=mean-squared-error, weight-observer=mean-squared-error, samples=512}}"


def _calibrated(weights: int, activations: int, how: str = SEARCH) -> str:
    bits = f"insert-fake-quant{{{{weight-bits={weights}, activation-bits={activations}}}}}"
    return f"{FOLD}, {bits}, {how}"


def _train(activations: int, options: str) -> str:
    constant = "steps={steps}, weight-decay=1e-4, amp=bf16, seed={seed}"
    return f"finetune{{{{{constant}, lr={RATES[activations]}, {options}}}}}"


def _trained(weights: int, activations: int, options: str) -> str:
    return f"{_calibrated(weights, activations)}, {_train(activations, options)}"


def _thinned() -> str:
    """Half of the MACs, trained twice as long in float."""
    options = "steps={twice}, lr=0.01, warmup=20, weight-decay=5e-4, distill=0.5, amp=bf16, seed={seed}"
    return f"canonicalize, prune-channels{{{{macs=0.5}}}}, finetune{{{{{options}}}}}"


TAUGHT = "scales=learned, distill=0.9"
THEN = " then "  # between pipelines: those with `finetune` get augmented images with labels, others the 512
# Name -> the recipe before `lower-integers`. Those with `seed` are run for each seed.
RECIPES = {
    "8/8, calibrated": _calibrated(8, 8, "calibrate"),
    "8/8, learned scales, distilled": _trained(8, 8, TAUGHT),
    "4/8, calibrated": _calibrated(4, 8, "calibrate"),
    "4/8, round-weights": f"{_calibrated(4, 8)}, round-weights",
    "4/8, learned scales, distilled": _trained(4, 8, TAUGHT),
    "4/4, calibrated": _calibrated(4, 4, "calibrate"),
    "4/4, calibrated, squared error": _calibrated(4, 4),
    "4/4, round-weights": f"{_calibrated(4, 4)}, round-weights",
    "4/4, frozen scales": _trained(4, 4, "scales=frozen"),
    "4/4, learned scales": _trained(4, 4, "scales=learned"),
    "4/4, learned scales, distilled": _trained(4, 4, TAUGHT),
    "4/4, round-weights, then trained": f"{_calibrated(4, 4)}, round-weights{THEN}{_train(4, TAUGHT)}",
    "half of the MACs, float": _thinned(),
    "half of the MACs, then 8/8": f"{_thinned()}, {_trained(8, 8, TAUGHT)}",
}


@dataclass
class Row:
    """Top-1 in percent by seed, and the seconds of the slowest."""

    name: str
    scores: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Augmented:
    """Endless in effect: each epoch shuffles and crops anew, from torch's global generator, which `finetune` seeds."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images) // BATCH

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        order = torch.randperm(len(self.images), generator=generator)
        for chosen in order[: len(self) * BATCH].split(BATCH):
            batch = self.images[chosen]
            yield normalise_cifar(augment(batch.pixels, generator)), batch.labels


def measure(
    model: torch.nn.Module, train: Images, test: Images, names: list[str], steps: int, seeds: int
) -> Iterator[Row]:
    captured = planish.capture(model, (torch.zeros(2, 3, 32, 32),))
    seen = torch.randperm(len(train), generator=torch.Generator().manual_seed(7))[:SEEN]
    plain = list(normalise_cifar(train.pixels[seen]).split(BATCH))
    yield Row("float", [score(captured, test)])
    for name in names:
        row, recipe = Row(name), RECIPES[name]
        for seed in range(seeds if "{seed}" in recipe else 1):
            torch.manual_seed(seed)  # of what `calibrate` sees where the loader is random
            started = time.perf_counter()
            graph = captured
            for text in recipe.format(steps=steps, twice=2 * steps, seed=seed).split(THEN):
                data = Augmented(train) if "finetune" in text else plain
                graph = planish.Pipeline.parse(text).run(graph, planish.Context(data=data, original=captured)).graph
            if "calibrate" in recipe:
                graph = planish.Pipeline.parse("lower-integers").run(graph).graph
            row.seconds = max(row.seconds, time.perf_counter() - started)
            row.scores.append(score(planish.compile(graph, recipe="", batch=SCORED), test))
        yield row


def peer(model: torch.nn.Module, train: Images, test: Images, bits: int, steps: int, seeds: int) -> Row:
    row = Row(f"{bits}/{bits}, torchao PT2E, trained")
    for seed in range(seeds):
        torch.manual_seed(seed)
        started = time.perf_counter()
        trained = pt2e_qat(model, Augmented(train), bits, steps, RATES[bits])
        row.seconds = max(row.seconds, time.perf_counter() - started)
        row.scores.append(score(trained, test))
    return row


@torch.no_grad()
def score(model: Callable[[torch.Tensor], torch.Tensor], images: Images) -> float:
    """Top-1 in percent."""
    parts = zip(images.pixels.split(SCORED), images.labels.split(SCORED), strict=True)
    return 100 * sum(int((model(normalise_cifar(p)).argmax(1) == labels).sum()) for p, labels in parts) / len(images)


def table(rows: list[Row], steps: int, count: int) -> Table:
    shown = Table(title=f"ResNet-20, {count} test images; trainings of {steps} steps of {BATCH}", title_justify="left")
    shown.add_column("bits of weights/activations")
    for heading in ("top-1, %", "by seed", "passes, s"):
        shown.add_column(heading, justify="right")
    for row in rows:
        seeds = " ".join(f"{score:.2f}" for score in row.scores) if len(row.scores) > 1 else ""
        shown.add_row(row.name, f"{statistics.mean(row.scores):.2f}", seeds, f"{row.seconds:.0f}")
    return shown


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of CIFAR-10 with resnet20.safetensors")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=tuple(RECIPES), default=list(RECIPES), help="these recipes")
    parser.add_argument("--peer", action="store_true", help="train with torchao as well")
    parser.add_argument("--threads", type=int, default=1)
    scratch = Path(tempfile.gettempdir()) / "planish-pruning"
    parser.add_argument("--cache", type=Path, default=scratch, help="where decoded images are kept")
    chosen, console = parser.parse_args(), Console(width=110)
    torch.set_num_threads(chosen.threads)
    set_threads(chosen.threads)
    train, test = (cifar10(chosen.data, split, chosen.cache) for split in ("train", "test"))
    model, rows = resnet20(chosen.data / "resnet20.safetensors"), []
    for row in measure(model, train, test, chosen.only, chosen.steps, chosen.seeds):
        rows.append(row)
        console.log(f"{row.name}: {row.scores}, {row.seconds:.0f} s")
    for bits in (8, 4) if chosen.peer else ():
        rows.append(peer(model, train, test, bits, chosen.steps, chosen.seeds))
        console.log(f"{rows[-1].name}: {rows[-1].scores}, {rows[-1].seconds:.0f} s")
    console.print(table(rows, chosen.steps, len(test)))


if __name__ == "__main__":
    main()
