"""How pruning grows with the size of a model: residual nets of 100 to 1,000 layers, graphs of 1,000 to 10,000 ops.

    python benchmarks/growth.py [--small] [--out docs/growth.md]

Each net is captured and pruned to half its multiply-accumulates in a process of its own. Columns are seconds of
processor time of one thread: the capture (torch.export), the index graph, scores and selection, the cut, those three
together (prune), and the proof. `us / op` is prune by operation; `exponent` is its slope between a row and the one
above on logarithmic scales: 1 is linear growth, 2 quadratic.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from coverage_steps import Watch, prune
from coverage_table import machine, versions
from coverage_zoo import add_noise
from torch import Tensor, nn

import planish

WIDTH = 16
SIZES = {"residual": (100, 200, 400, 700, 1000), "branches": (1000, 2000, 5000, 10000)}
SMALL = {"residual": (20, 40), "branches": (200, 400)}
OPS_PER_CELL = 11


class Block(nn.Module):
    """Two convs with batch norm and a shortcut: two layers of a residual net."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norms[0](self.convs[0](x)))
        return torch.relu(x + self.norms[1](self.convs[1](inner)))


class Cell(nn.Module):
    """Two branches of half the channels each, one of them widened inside: split, convs, gate, concat, shortcut."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        self.expand, self.reduce = nn.Conv2d(half, 4 * WIDTH, 1), nn.Conv2d(4 * WIDTH, half, 1)
        self.right = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        one = self.reduce(torch.relu(self.expand(one)))
        gated = self.right(other) * torch.sigmoid(one)
        return x + torch.cat([one, gated], 1)


def residual(layers: int) -> nn.Module:
    """A residual net with so many convs between its first and last layer."""
    return _net([Block() for _ in range(layers // 2)])


def branches(ops: int) -> nn.Module:
    """A net whose graph has about so many operations."""
    return _net([Cell() for _ in range(ops // OPS_PER_CELL)])


def _net(body: list[nn.Module]) -> nn.Module:
    stem = nn.Conv2d(3, WIDTH, 3, padding=1)
    return nn.Sequential(stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))


NETS: dict[str, Callable[[int], nn.Module]] = {"residual": residual, "branches": branches}


def measure(family: str, size: int) -> dict[str, Any]:
    """Capture and prune one net: seconds by step, operations and groups. Raises VerifyError where the proof fails."""
    watch = Watch()
    model = add_noise(NETS[family](size)).eval()
    with watch.step("capture"):
        graph = planish.capture(model, (torch.zeros(1, 3, 8, 8),))
    facts = prune(graph, watch)
    seconds = watch.seconds
    total = seconds["pass"] - seconds["proof"]
    return {
        "size": size,
        "ops": facts["nodes"],
        "groups": facts["groups"][0],
        **{step: seconds[step] for step in ("capture", "index", "cut", "proof")},
        "score": total - seconds["index"] - seconds["cut"],
        "prune": total,
        "macs": facts["macs"][1] / facts["macs"][0],
        "error": facts["proof_error"],
    }


def measured_apart(family: str, size: int) -> dict[str, Any]:
    """`measure` in a process of its own, so that no net profits from what another one left behind."""
    command = [sys.executable, __file__, "--measure", family, str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"growth: {family} {size} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def exponent(row: dict[str, Any], above: dict[str, Any], key: str) -> float:
    return math.log(row[key] / above[key]) / math.log(row["ops"] / above["ops"])


HEADINGS = ("ops", "groups", "capture", "index", "score", "cut", "**prune**", "proof", "us / op", "exponent")


def table(family: str, rows: list[dict[str, Any]]) -> list[str]:
    unit = {"residual": "layers", "branches": "asked for"}[family]
    lines = [f"\n## {family}\n", "| " + " | ".join((unit, *HEADINGS)) + " |", "|" + "--:|" * (len(HEADINGS) + 1)]
    for number, row in enumerate(rows):
        cells = [str(row["size"]), str(row["ops"]), str(row["groups"])]
        cells += [f"{row[step]:.2f}" for step in ("capture", "index", "score", "cut", "prune", "proof")]
        cells += [f"{row['prune'] / row['ops'] * 1e6:.0f}"]
        cells += [f"{exponent(row, rows[number - 1], 'prune'):.2f}" if number else ""]
        lines.append("| " + " | ".join(cells) + " |")
    if len(rows) > 1:
        whole = {key: exponent(rows[-1], rows[0], key) for key in ("capture", "index", "cut", "prune", "proof")}
        lines.append(
            "\nExponents from the first row to the last: " + ", ".join(f"{k} {v:.2f}" for k, v in whole.items())
        )
    return lines


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="nets of a few layers, to see that it runs")
    parser.add_argument("--out", type=Path, help="the page to write; printed when not given")
    parser.add_argument("--measure", nargs=2, metavar=("FAMILY", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        torch.manual_seed(0)
        print(json.dumps(measure(args.measure[0], int(args.measure[1]))))
        return
    lines = ["# Growth", "", *__doc__.strip().splitlines(), "", f"On {machine()}; {versions()}."]
    for family, sizes in (SMALL if args.small else SIZES).items():
        lines += table(family, [measured_apart(family, size) for size in sizes])
    text = "\n".join(lines) + "\n"
    if args.out is None:
        print(text)
        return
    aside = args.out.with_suffix(".partial")
    aside.write_text(text)
    aside.rename(args.out)


if __name__ == "__main__":
    main()
