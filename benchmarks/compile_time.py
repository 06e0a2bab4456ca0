"""Seconds to compile, cold and out of the cache, by phase.

    python benchmarks/compile_time.py [--models efficientnet-lite0,resnet50] [--targets local,raspberry-pi-4]
                                      [--forms float,int8] [--repeats 3] [--json]

Every figure comes from a process of its own and is the median of `--repeats`. "imports" is what Python needs to load
PyTorch, TVM and Planish before a model is looked at, and is not part of "total"; what torch.export loads when it is
first called is part of "lookup" (the search for what was made before) or "capture", whichever needs it first.
"CPU" is the time of all threads in "total", which other work on the machine changes less. The second run finds the
outcome and the code of the first in a cache that is made for the measurement, and must write the same bundle.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

RECIPES = {
    "float": "canonicalize, fold-batch-norm",
    "int8": "canonicalize, fold-batch-norm, insert-fake-quant, calibrate, lower-integers",
}
PHASES = ("imports", "lookup", "capture", "passes", "build", "save", "total", "CPU")


def measure(name: str, form: str, target: str) -> dict:
    """Compile and save one model in this process -> seconds by phase, and the sha256 of the bundle."""
    started = time.perf_counter()
    import torch
    from models import MODELS

    import planish
    import planish.backends.tvm.build
    from planish.backends.build import build  # noqa: F401 - as the first use would

    imported = time.perf_counter()
    model, args = MODELS[name]()
    torch.set_num_threads(os.cpu_count() or 1)
    ready, worked = time.perf_counter(), time.process_time()
    compiled = planish.compile(model, args, recipe=RECIPES[form], target=target, data=[args])
    built = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bundle = compiled.save(Path(folder) / "model.planish")
        done, spent = time.perf_counter(), time.process_time() - worked
        whole = {"save": done - built, "total": done - ready, "CPU": spent}
        digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    return {"imports": imported - started, **compiled.report.seconds, **whole, "bundle": digest}


def in_a_process(name: str, form: str, target: str, cache: str) -> dict:
    command = [sys.executable, __file__, "--one", name, form, target]
    environment = {**os.environ, "PLANISH_CACHE": "on", "PLANISH_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def medians(name: str, form: str, target: str, repeats: int) -> dict[str, dict[str, float]]:
    """ "cold" and "warm" -> seconds by phase."""
    taken: dict[str, list[dict]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for state in taken.values():
                state.append(in_a_process(name, form, target, cache))
    if len({run["bundle"] for runs in taken.values() for run in runs}) != 1:
        raise SystemExit(f"{name}, {form}, {target}: the bundles are not the same bytes")
    return {
        state: {phase: statistics.median(run.get(phase, 0.0) for run in runs) for phase in PHASES}
        for state, runs in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="efficientnet-lite0,resnet50")
    parser.add_argument("--targets", default="local,raspberry-pi-4")
    parser.add_argument("--forms", default="float,int8", help=f"of {','.join(RECIPES)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    if unknown := set(args.forms.split(",")) - set(RECIPES):
        parser.error(f"--forms: unknown {', '.join(sorted(unknown))}; known are {', '.join(RECIPES)}")
    rows, table = [], Table("model", "target", "code", *(f"{phase}, s" for phase in PHASES))
    for name in args.models.split(","):
        for target in args.targets.split(","):
            for form in args.forms.split(","):
                for state, seconds in medians(name, form, target, args.repeats).items():
                    rows.append({"model": name, "target": target, "form": form, "state": state, **seconds})
                    figures = (f"{seconds[phase]:.2f}" for phase in PHASES)
                    table.add_row(f"{name}, {form}", target, "built" if state == "cold" else "found", *figures)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
