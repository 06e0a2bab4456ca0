"""Latency of one model on this machine against PyTorch eager, Inductor and onnxruntime, in one run.

    python benchmarks/latency.py --against eager,inductor,onnxruntime [--model NAME] [--threads 1] [--json]

Prints least and median milliseconds, the middle half, and the ratio of planish's time to each peer's. float32, batch 1.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from models import MODELS
from rich.console import Console
from rich.table import Table
from timing import Timing, interleaved

import planish
from planish.backends.onnx import export_onnx
from planish.backends.tvm.build import set_threads

Call = Callable[[], object]


def eager(model: torch.nn.Module, x: torch.Tensor, threads: int) -> Call:
    return lambda: model(x)


def inductor(model: torch.nn.Module, x: torch.Tensor, threads: int) -> Call:
    """torch.compile as users call it, with the weights frozen into constants, which is its fastest form."""
    torch._inductor.config.freezing = True
    compiled = torch.compile(model)
    compiled(x)
    return lambda: compiled(x)


def onnxruntime(model: torch.nn.Module, x: torch.Tensor, threads: int) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(planish.capture(model, (x,)), path)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


PEERS = {"eager": eager, "inductor": inductor, "onnxruntime": onnxruntime}


def table(timings: dict[str, Timing]) -> Table:
    ours = timings["planish"]
    rows = Table("", "least ms", "median ms", "middle half", "planish / it, least", "planish / it, median")
    for name, t in timings.items():
        ratios = [f"{ours.least / t.least:.2f}", f"{ours.median / t.median:.2f}"]
        rows.add_row(name, f"{t.least:.2f}", f"{t.median:.2f}", f"{t.low:.2f} to {t.high:.2f}", *ratios)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="efficientnet-lite0", choices=MODELS)
    parser.add_argument("--against", default="eager,onnxruntime", help=f"of {','.join(PEERS)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.against.split(",")) - set(PEERS):
        parser.error(f"--against: unknown {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    set_threads(args.threads)
    model, x = MODELS[args.model]()
    compiled = planish.compile(model, (x,))
    error = float((compiled(x) - model(x)).abs().max())
    candidates: dict[str, Call] = {"planish": lambda: compiled(x)}
    candidates |= {name: PEERS[name](model, x, args.threads) for name in args.against.split(",")}
    timings = interleaved(candidates, rounds=args.rounds)
    if args.json:
        print(json.dumps({"max_abs_error": error, "ms": {name: asdict(t) for name, t in timings.items()}}))
        return
    console = Console(width=110)
    console.print(table(timings))
    console.print(f"{args.model}, float32, batch 1, {args.threads} thread(s)")
    console.print(f"max abs error against PyTorch {error:.1e}")


if __name__ == "__main__":
    main()
