"""Eight bits in integers beside other tools: accuracy and latency of EfficientNet-Lite0, in one run.

    pip install -e '.[bench,peers]'
    python benchmarks/quantization.py IMAGENET_FOLDER [--threads 1] [--rounds 20]

The folder holds 224 x 224 photographs with `labels.json` (see `data.py`). 100 of them, without labels, calibrate
everybody; the others are scored. Rounding to 4 bits takes some minutes. What planish runs are integer kernels, checked
against the integer graph in PyTorch. onnxruntime's quantize_static, NNCF (on OpenVINO) and torchao's PT2E get the same
images.
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from data import Images, imagenet, normalise_lite0
from models import efficientnet_lite0
from quantization_peers import Candidate, candidates, onnx_candidate
from rich.console import Console
from rich.table import Table
from timing import Timing, interleaved

import planish
from planish.backends.onnx import export_onnx
from planish.backends.tvm.threads import set_threads

SEEN = 100
FOLD = "canonicalize, fold-batch-norm"
QUANTIZE = f"{FOLD}, insert-fake-quant{{activations=target}}"
RECIPES = {
    "planish, min-max": f"{QUANTIZE}, calibrate, lower-integers",
    "planish, mse": f"{QUANTIZE}, calibrate{{observer=mean-squared-error}}, lower-integers",
    "planish, percentile": f"{QUANTIZE}, calibrate{{observer=percentile}}, lower-integers",
    "planish, entropy": f"{QUANTIZE}, calibrate{{observer=entropy}}, lower-integers",
    "planish, corrected": f"{QUANTIZE}, calibrate, correct-bias, lower-integers",
    "planish, 4-bit weights": f"{FOLD}, insert-fake-quant{{activations=target, weight-bits=4}}, calibrate, "
    "round-weights, lower-integers",
}


@dataclass(frozen=True)
class Row:
    """top-1 and how often it answers as float does, in percent; note: what was checked."""

    name: str
    top1: float
    agreement: float
    note: str


def ours(model: torch.nn.Module, seen: torch.Tensor) -> Iterator[tuple[Candidate, str]]:
    """The float model and each recipe compiled for this machine; the first recipe also as an ONNX file."""
    captured = planish.capture(model, (seen[:1],))
    context = planish.Context(data=list(seen.split(20)), target=planish.Target.get("local"))
    for name, recipe in {"planish, float": FOLD, **RECIPES}.items():
        graph = planish.Pipeline.parse(recipe).run(captured, context).graph
        compiled = planish.compile(graph, recipe="", batch=1)
        yield _compiled(name, compiled, seen[:1]), _note(compiled, seen[:2])
        if name == next(iter(RECIPES)):
            with tempfile.TemporaryDirectory() as room:
                path = Path(room) / "model.onnx"
                report = export_onnx(graph, path)
                yield onnx_candidate(f"{name}, as ONNX", path, seen[:1], 1), f"equal: {'yes' if report.equal else 'no'}"


def _compiled(name: str, compiled: planish.CompiledModel, image: torch.Tensor) -> Candidate:
    return Candidate(name, lambda images: torch.cat([compiled(one[None]) for one in images]), lambda: compiled(image))


def _note(compiled: planish.CompiledModel, images: torch.Tensor) -> str:
    """int8 kernels, and whether what is compiled equals the graph in PyTorch bit for bit."""
    report = compiled.report
    same = all(torch.equal(compiled(image[None]), compiled.graph(image[None])) for image in images)
    return f"int8 kernels {report.int8_kernels}, equal: {'yes' if same else 'no'}" if report.integers else ""


def score(candidate: Candidate, images: Images, exact: torch.Tensor, note: str = "") -> Row:
    with torch.no_grad():
        answers = torch.cat([candidate.logits(normalise_lite0(part)) for part in images.pixels.split(1)]).argmax(1)
    shares = (100 * float((answers == truth).double().mean()) for truth in (images.labels, exact))
    return Row(candidate.name, *shares, note)


def table(rows: list[Row], timings: dict[str, Timing], count: int) -> Table:
    best = min(timings[name].least for name in timings if not name.startswith("planish"))
    shown = Table(title=f"EfficientNet-Lite0, {count} photographs, batch 1", title_justify="left")
    for heading in ("", "top-1, %", "as float, %", "least ms", "median ms", "least / best peer", ""):
        shown.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        timing = timings.get(row.name)
        times = [f"{timing.least:.2f}", f"{timing.median:.2f}", f"{timing.least / best:.2f}"] if timing else ["-"] * 3
        shown.add_row(row.name, f"{row.top1:.2f}", f"{row.agreement:.2f}", *times, row.note)
    return shown


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of photographs with labels.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="of timing, candidates taking turns")
    chosen, console = parser.parse_args(), Console(width=140)
    torch.set_num_threads(chosen.threads)
    set_threads(chosen.threads)
    images = imagenet(chosen.data)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    seen, scored = normalise_lite0(images[order[:SEEN]].pixels), images[order[SEEN:]]
    model, _ = efficientnet_lite0()
    with torch.no_grad():
        exact = torch.cat([model(normalise_lite0(part)) for part in scored.pixels.split(20)]).argmax(1)
    rows, timed = [], {}
    peers = ((candidate, "") for candidate in candidates(model, seen, chosen.threads))
    for candidate, note in (*ours(model, seen), *peers):
        rows.append(score(candidate, scored, exact, note))
        console.log(f"{candidate.name}: {rows[-1].top1:.2f} % {note}")
        if candidate.once is not None:
            timed[candidate.name] = candidate.once
    console.print(table(rows, interleaved(timed, chosen.rounds), len(scored)))
    console.print("least / best peer: milliseconds of one image against the fastest of the other tools' int8 models.")


if __name__ == "__main__":
    main()
