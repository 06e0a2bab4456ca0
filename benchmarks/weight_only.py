"""Linear layers of one row by the bytes of their weights: time and size of packed weights against float32, in one run.

    python benchmarks/weight_only.py [--sizes 1024,4096] [--rows 1] [--threads 1] [--rounds 15] [--json]

Reading the weights is most of the work of a row, so that time falls with their bytes for as long as memory is what
bounds it. Each layer is built from the recipe that its row names; its error is that of the kernel against the graph in
PyTorch, relative to the largest output.
"""

import argparse
import json
import warnings
from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table
from timing import Timing, interleaved

import planish
from planish.backends.tvm.threads import set_threads

PACKED = "insert-fake-quant{{activations=none, {}}}, calibrate{{data=none}}, lower-weights"
RECIPES = {
    "float32": "",
    "bfloat16": PACKED.format("weights=bfloat16"),
    "float16": PACKED.format("weights=float16"),
    "int8, a scale per output": PACKED.format("weight-bits=8"),
    "int4, a scale per output": PACKED.format("weight-bits=4"),
    "int4, a scale per 128 inputs": PACKED.format("weight-bits=4, weight-group=128"),
    "int4, a scale per 32 inputs": PACKED.format("weight-bits=4, weight-group=32"),
}


def layer(size: int, rows: int) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return torch.nn.Linear(size, size).eval(), torch.randn(rows, size)


def measure(size: int, rows: int, rounds: int) -> list[dict]:
    model, x = layer(size, rows)
    built, facts = {}, {}
    for name, recipe in RECIPES.items():
        graph = planish.Pipeline.parse(recipe).run(planish.capture(model, (x,))).graph
        compiled = planish.compile(graph, recipe="", batch=rows)
        wanted = graph(x)
        error = float((compiled(x) - wanted).abs().max() / wanted.abs().max())
        facts[name] = {"weight_bytes": compiled.report.facts["weight_bytes"], "error": error}
        built[name] = lambda compiled=compiled: compiled(x)
    timings: dict[str, Timing] = interleaved(built, rounds=rounds)
    base = timings["float32"]
    return [
        {"size": size, "weights": name, **facts[name], "ms": asdict(t), "times_float32": base.median / t.median}
        for name, t in timings.items()
    ]


def table(rows: list[dict]) -> Table:
    shown = Table("layer", "weights", "MB", "least ms", "median ms", "float32 / it, median", "error")
    for row in rows:
        shown.add_row(
            f"{row['size']} x {row['size']}", row["weights"], f"{row['weight_bytes'] / 1e6:.2f}",
            f"{row['ms']['least']:.3f}", f"{row['ms']['median']:.3f}", f"{row['times_float32']:.2f}",
            f"{row['error']:.0e}",
        )  # fmt: skip
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1024,4096")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    set_threads(args.threads)
    rows = [row for size in map(int, args.sizes.split(",")) for row in measure(size, args.rows, args.rounds)]
    if args.json:
        print(json.dumps(rows))
        return
    console = Console(width=120)
    console.print(table(rows))
    console.print(f"{args.rows} row(s), {args.threads} thread(s), {planish.Target.get('local').cpu}")


if __name__ == "__main__":
    main()
