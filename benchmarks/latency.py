"""Latency on this machine beside the runtimes that people use, all in one run.

    python benchmarks/latency.py [--models NAME ...] [--precisions float int8] [--against NAME ...]
                                 [--batches 1 8] [--threads 1] [--pruned] [--rounds 12] [--json FILE]

Candidates take turns in short blocks. A row gives planish's least milliseconds, those of each peer, and planish's time
over that of the best peer, by least and by median. --pruned adds planish on
the model pruned to half its multiply-accumulates (channels by l1, no training: speed does not mind). Weights of all
models but EfficientNet-Lite0 are random. int8 needs the extra `peers`.
"""

import argparse
import json
import math
import statistics
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from latency_peers import PEERS, Call
from models import MODELS
from rich.console import Console
from rich.table import Table
from timing import Timing, interleaved

import planish
from planish.backends.tvm.threads import set_threads

FLOAT = "canonicalize, fold-batch-norm"
RECIPES = {"float": FLOAT, "int8": f"{FLOAT}, insert-fake-quant{{activations=target}}, calibrate, lower-integers"}
PRUNE = "canonicalize, prune-channels{macs=0.5}"
CNNS = tuple(name for name in MODELS if name not in ("vit-tiny", "bert-mini"))


@dataclass(frozen=True)
class Case:
    """What a row is about."""

    model: str
    precision: str
    batch: int
    threads: int


@dataclass
class Row:
    """Times by candidate; `failed`: why a peer has none; `error`: largest difference from PyTorch, float only."""

    case: Case
    times: dict[str, Timing] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    error: float | None = None

    @property
    def best(self) -> str | None:
        """The fastest peer by least time."""
        peers = [name for name in self.times if not name.startswith("planish")]
        return min(peers, key=lambda name: self.times[name].least, default=None)

    def ratio(self, figure: str, ours: str = "planish") -> float | None:
        """Ours over the best peer's."""
        if self.best is None or ours not in self.times:
            return None
        return getattr(self.times[ours], figure) / getattr(self.times[self.best], figure)


def ours(case: Case, model: torch.nn.Module, x: torch.Tensor, pruned: bool) -> planish.CompiledModel:
    """The model through its recipe, compiled for this machine with a fixed batch."""
    captured = planish.capture(model, (x,))
    context = planish.Context(data=[x], target=planish.Target.get("local"), seed=0)
    if pruned:
        captured = planish.Pipeline.parse(PRUNE).run(captured, context).graph
    graph = planish.Pipeline.parse(RECIPES[case.precision]).run(captured, context).graph
    return planish.compile(graph, recipe="", batch=case.batch)


def measure(case: Case, against: list[str], pruned: bool, rounds: int) -> Row:
    torch.set_num_threads(case.threads)
    set_threads(case.threads)
    model, x = MODELS[case.model](case.batch)
    row, candidates = Row(case), {}
    for name in ("planish", "planish, half the MACs")[: 1 + pruned]:
        compiled = ours(case, model, x, name != "planish")
        candidates[name] = lambda compiled=compiled: compiled(x)
        if name == "planish" and case.precision == "float":
            row.error = float((compiled(x) - model(x)).abs().max())
    with tempfile.TemporaryDirectory() as folder:
        for name in against:
            if name in PEERS[case.precision]:
                try:
                    candidates[name] = checked(PEERS[case.precision][name](model, x, case.threads, Path(folder)))
                except Exception as error:  # a peer that cannot run the model is a cell of the table, not the end
                    row.failed[name] = f"{type(error).__name__}: {error}"[:200]
        row.times = interleaved(candidates, rounds)
    return row


def checked(call: Call) -> Call:
    """The call, once it has run."""
    call()
    return call


def table(rows: list[Row], against: list[str]) -> Table:
    shown = Table(title="least milliseconds; planish / best peer", title_justify="left")
    for heading in ("", "batch", "threads", "planish", *against, "least", "median", "half MACs: least", "speed-up"):
        shown.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        case, half = row.case, row.times.get("planish, half the MACs")
        cells = [f"{row.times[n].least:.2f}" if n in row.times else "-" for n in ("planish", *against)]
        ratios = [_figure(row.ratio("least")), _figure(row.ratio("median"))]
        faster = None if half is None else row.times["planish"].least / half.least
        pruned = [_figure(row.ratio("least", "planish, half the MACs")), _figure(faster)]
        shown.add_row(f"{case.model}, {case.precision}", str(case.batch), str(case.threads), *cells, *ratios, *pruned)
    return shown


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def means(rows: list[Row]) -> list[str]:
    """The geometric mean of the ratios of the CNNs, by precision."""
    lines = []
    for precision in PEERS:
        ratios = [row.ratio("least") for row in rows if row.case.precision == precision and row.case.model in CNNS]
        known = [math.log(ratio) for ratio in ratios if ratio is not None]
        if known:
            mean = math.exp(statistics.fmean(known))
            lines.append(f"{precision}: geometric mean over {len(known)} rows of CNNs {mean:.2f} of the best peer")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(PEERS["float"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--precisions", nargs="+", default=["float"], choices=list(PEERS))
    parser.add_argument("--against", nargs="+", default=names, choices=names)
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--pruned", action="store_true")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    chosen, console = parser.parse_args(), Console(width=160)
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    cases = [
        Case(model, precision, batch, threads)
        for precision in chosen.precisions
        for threads in chosen.threads
        for batch in chosen.batches
        for model in chosen.models
    ]
    rows = []
    for case in cases:
        rows.append(measure(case, chosen.against, chosen.pruned, chosen.rounds))
        for name, why in rows[-1].failed.items():
            console.log(f"{case}: {name} failed: {why}")
        console.log(f"{case}: {_figure(rows[-1].ratio('least'))} of {rows[-1].best}")
        if chosen.json:
            chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    console.print(table(rows, chosen.against))
    console.print("\n".join(means(rows)))
    worst = max((row.error for row in rows if row.error is not None), default=None)
    console.print(f"largest difference from PyTorch in float: {worst:.1e}" if worst is not None else "")


if __name__ == "__main__":
    main()
