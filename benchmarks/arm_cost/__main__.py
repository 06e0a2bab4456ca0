"""Instructions and model cycles of one inference on an ARM core, without the board.

    apt install qemu-user llvm-19 gcc
    python benchmarks/arm_cost --model mobilenet-v2 --core a72 --precision int8 [--kernels] [--against onnxruntime,ncnn]

What planish compiles runs in QEMU's user mode under a plugin that counts every block of code; llvm-mca says what a
block costs on the core. Without --model, --core or --precision all of them are measured, each in turn, but for the
32-bit core `a7`, which is to be asked for. `--against` measures other engines in the same run, from their aarch64
wheels; see docs/arm-cost.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from itertools import product
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))  # the models of all benchmarks

import published
import torch
from cores import CORES, Cost
from models import MODELS
from ours import RECIPES, Kernel, Measured, measure
from peers import PEERS, peer
from rich.console import Console
from rich.table import Table

MILLION = 1e6
NAMED = ("efficientnet-lite0", "mobilenet-v2", "resnet18")


def costs_table(title: str, own: Cost, measured: dict[str, Cost], printed: dict[str, tuple[float, float]]) -> Table:
    """Planish beside the engines of this run and the published ones."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "million instructions", "million model cycles", "planish / it"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = {"planish": (own.instructions / MILLION, own.cycles / MILLION)}
    rows |= {name: (found.instructions / MILLION, found.cycles / MILLION) for name, found in measured.items()}
    rows |= {f"{name}, published": row for name, row in printed.items()}
    for name, (instructions, cycles) in rows.items():
        table.add_row(name, f"{instructions:.1f}", f"{cycles:.1f}", f"{own.cycles / MILLION / cycles:.2f}")
    return table


def kernels_table(kernels: list[Kernel], cycles: float) -> Table:
    table = Table(title="by kernel", title_justify="left")
    for heading in ("million cycles", "share", "calls", "kernel", "instruction", "layers"):
        table.add_column(heading, justify="left" if heading in ("kernel", "instruction", "layers") else "right")
    for kernel in kernels:
        share = f"{100 * kernel.cycles / cycles:.1f} %"
        names = ", ".join(kernel.layers)
        table.add_row(
            f"{kernel.cycles / MILLION:.2f}", share, str(len(kernel.layers)), kernel.what, kernel.instruction, names
        )
    return table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(NAMED))
    parser.add_argument("--core", nargs="+", choices=CORES, default=["a72", "a76"])
    parser.add_argument("--precision", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--against", default="", help=f"engines to measure as well, of {','.join(PEERS)}")
    parser.add_argument("--wheels", type=Path, help="the folder of engines that `prepare_peers.py` filled")
    parser.add_argument("--kernels", action="store_true", help="the cycles of each kernel")
    parser.add_argument(
        "--cores", type=int, default=1, help="for how many kernels are cut; one thread runs them, as it does the peers'"
    )
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    chosen.against = [name for name in chosen.against.split(",") if name]
    if unknown := set(chosen.against) - set(PEERS):
        parser.error(f"--against: unknown {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    if chosen.against and not chosen.wheels:
        parser.error("--against needs --wheels FOLDER; `python benchmarks/arm_cost/prepare_peers.py FOLDER` fills it")
    if chosen.against and (foreign := [name for name in chosen.core if CORES[name].machine != "aarch64"]):
        parser.error(f"--against: the wheels are for 64 bits, and {', '.join(foreign)} has 32; choose another --core")
    return chosen


def as_json(names: tuple[str, str, str], found: Measured, measured: dict[str, Cost]) -> str:
    costs = {"planish": found.cost, **measured}
    figures = {name: {"instructions": cost.instructions, "cycles": cost.cycles} for name, cost in costs.items()}
    kernels = [{"cycles": k.cycles, "kernel": k.what, "layers": k.layers} for k in found.kernels]
    return json.dumps(
        dict(zip(("model", "core", "precision"), names, strict=True)) | {"costs": figures, "kernels": kernels}
    )


def main() -> None:
    warnings.simplefilter("ignore")
    chosen, console = arguments(), Console(width=150)
    torch.set_num_threads(1)
    for name, core, precision in product(chosen.model, chosen.core, chosen.precision):
        if precision == "fp16" and not CORES[core].has_half:
            continue
        with tempfile.TemporaryDirectory(prefix="planish-arm-") as folder:
            room = Path(folder)
            model, x = MODELS[name]()
            found = measure(model, x, CORES[core], precision, room, chosen.cores)
            measured: dict[str, Cost] = {}
            for engine in chosen.against:
                if theirs := peer(engine, model, x, CORES[core], precision, chosen.wheels, room):
                    measured[engine] = theirs
        if chosen.json:
            print(as_json((name, core, precision), found, measured), flush=True)
            continue
        title = f"{name}, {precision}, {CORES[core].emulated}, one thread, batch 1"
        printed = published.figures(name, core, precision)
        console.print(costs_table(title, found.cost, measured, printed))
        if printed:
            best = min(cycles for _, cycles in printed.values())
            ratio = found.cost.cycles / MILLION / best
            console.print(f"of the best published: {ratio:.3f} (bar: {published.BARS[precision]})")
        if chosen.kernels:
            console.print(kernels_table(found.kernels, found.cost.cycles))


if __name__ == "__main__":
    main()
