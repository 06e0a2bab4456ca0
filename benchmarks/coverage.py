"""Prune whole zoos of models to half their multiply-accumulates and write what came of each: docs/coverage.md.

    python benchmarks/coverage.py --zoo torchvision,transformers [--only PATTERN] [--out docs/coverage.md] [--jobs 1]

--zoo is a list of zoos, or the name of one model. Each model is measured in a process of its own (coverage_measure.py):
a crash or a time-out of one is a row of the table. With --results FOLDER the rows are kept, and models that have one
there are not measured again. Without --out the table is printed.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from coverage_table import is_ok, prune_seconds, report
from coverage_zoo import ZOOS, Entry, entries


def measured(zoo: str, entry: Entry, folder: Path, limit: int) -> dict[str, Any]:
    """The row of one model, from an earlier run where there is one."""
    path = folder / f"{zoo}-{entry.name}.json"
    if not path.exists():
        row = _run(zoo, entry.name, path, limit)
        if row is not None:
            path.write_text(json.dumps(row, indent=1))
    row = json.loads(path.read_text())
    what = f"{prune_seconds(row):.2f} s" if is_ok(row) else f"FAILS ({row['stage']}): {row.get('error', '')[:200]}"
    print(f"{entry.name}: {what}", file=sys.stderr, flush=True)
    return row


def _run(zoo: str, name: str, path: Path, limit: int) -> dict[str, Any] | None:
    """Measure in a new process, which writes the row itself; the row of the failure where it could not."""
    script = Path(__file__).with_name("coverage_measure.py")
    command = [sys.executable, str(script), zoo, name, str(path), str(limit)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if path.exists():
        return None
    is_late = -done.returncode in (signal.SIGKILL, signal.SIGXCPU)
    why = f"killed: more than {limit} s, or out of memory" if is_late else f"it ended with {done.returncode}"
    error = f"{why}: {done.stderr[-300:].strip()}"
    return {"name": name, "stage": "process", "seconds": {}, "parts": {}, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", required=True, help=f"of {','.join(ZOOS)}, or the name of one model")
    parser.add_argument("--only", default="*", help="a pattern of model names")
    parser.add_argument("--out", type=Path, help="the page to write; printed when not given")
    parser.add_argument("--jobs", type=int, default=1, help="models at once; figures are for 1")
    parser.add_argument("--limit", type=int, default=600, help="seconds of processor time for one model")
    parser.add_argument("--results", type=Path, help="keep each model's row in this folder, and use what is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.results or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        zoos: dict[str, list[dict[str, Any]]] = {}
        with ThreadPoolExecutor(args.jobs) as pool:
            for zoo in args.zoo.split(","):
                jobs = [pool.submit(measured, zoo, e, folder, args.limit) for e in entries(zoo, args.only)]
                zoos[zoo] = [job.result() for job in jobs]
    shown = [word for word in sys.argv[1:] if word not in ("--results", str(args.results))]
    text = report(zoos, f"python benchmarks/coverage.py {shlex.join(shown)}")
    if args.out is None:
        print(text)
        return
    aside = args.out.with_suffix(".partial")
    aside.write_text(text + "\n")
    aside.rename(args.out)


if __name__ == "__main__":
    main()
