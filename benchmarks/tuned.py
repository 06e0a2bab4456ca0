"""What tune=N brings a whole model: its time with measured register tiles over its time with the rule's.

    python benchmarks/tuned.py [--models NAME ...] [--tries 4] [--precision float|int8] [--rounds 30] [--tiles FILE]

Both are compiled for one batch and run on one thread; they take turns in short blocks. --tiles keeps the measured tiles
in a file, where a later run finds them.
"""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch
from models import MODELS
from rich.console import Console
from rich.table import Table
from timing import interleaved

import planish
from planish.backends.tvm.threads import set_threads

FLOAT = "canonicalize, fold-batch-norm"
RECIPES = {"float": FLOAT, "int8": f"{FLOAT}, insert-fake-quant{{activations=target}}, calibrate, lower-integers"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--tries", type=int, default=4, metavar="N", help="tiles for each layer")
    parser.add_argument("--precision", default="float", choices=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tiles", type=Path, metavar="FILE")
    chosen, console = parser.parse_args(), Console(width=120)
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    os.environ["PLANISH_TILES"] = "off"  # the rule must not find what was measured earlier
    shown = Table("model", "tuning, s", "layers changed", "rule, ms", "tuned, ms", "least", "median")
    with tempfile.TemporaryDirectory() as room:
        file = chosen.tiles or Path(room) / "tiles.json"
        for name in chosen.models:
            shown.add_row(name, *_row(name, chosen.precision, chosen.tries, file, chosen.rounds))
    console.print(shown)


def _row(name: str, precision: str, tries: int, file: Path, rounds: int) -> list[str]:
    model, x = MODELS[name](1)
    context = planish.Context(data=[x], target=planish.Target.get("local"), seed=0)
    graph = planish.Pipeline.parse(RECIPES[precision]).run(planish.capture(model, (x,)), context).graph
    by_rule = planish.compile(graph, recipe="", batch=1, cache=False)
    started = time.perf_counter()
    tuned = planish.compile(graph, recipe="", batch=1, cache=False, tune=tries, tiles=file)
    spent = time.perf_counter() - started
    changed = sum(a["kernel"] != b["kernel"] for a, b in zip(by_rule.report.layers, tuned.report.layers, strict=True))
    set_threads(1)
    times = interleaved({"rule": lambda: by_rule(x), "tuned": lambda: tuned(x)}, rounds)
    rule, best = times["rule"], times["tuned"]
    ratios = f"{best.least / rule.least:.3f}", f"{best.median / rule.median:.3f}"
    layers = f"{changed} of {len(by_rule.report.layers)}"
    return [f"{spent:.0f}", layers, f"{rule.least:.2f}", f"{best.least:.2f}", *ratios]


if __name__ == "__main__":
    main()
