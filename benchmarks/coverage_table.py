"""The coverage report: one table for each zoo, failures in plain sight, and what is measured against which bar."""

import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]
PROOF_TOLERANCE, MACS_SHARE, MACS_TOLERANCE = 1e-9, 0.5, 0.005
BAR_MEDIAN, BAR_WORST, BAR_PEAK = 0.3, 3.0, 2.0
# Below this a process's own bookkeeping is more than the weights, and a ratio to them says nothing.
WEIGHTS_THAT_COUNT = 50e6

INTRODUCTION = """\
# What can be pruned

Every model is built with random weights, captured, pruned to half of its multiply-accumulates
(`prune-channels{{macs=0.5}}`), proved, run forward and trained for one step, each in a process of its own with one
thread. Written by

    {command}

on {machine}; {versions}{commits}.

- **ok**: captured; the target met within 0.5 %; every cut proved in float64 to 1e-9; forward at batch 1 and 2 (where
  the batch is dynamic) and one training step give finite numbers.
- **parts**: a detector is captured in part (`planish.capture_parts`). Each captured part is pruned to half of *its own*
  multiply-accumulates and proved; then the whole detector, eager code included, detects in two images of different size
  and takes a training step. "3 of 4": one of four parts has nothing to remove between its inputs and outputs.
- **capture, index, score, cut, proof, run**: seconds of processor time, one thread, a fresh process. *index* is the
  index graph; *score* everything else in the pass (groups, importance, selection, costs before and after, checks);
  *prune* is index + score + cut: all but the proof. The garbage that capture leaves is collected before it starts.
- **peak**: the most memory in use from before the index graph to after the cut, the weights included, as a multiple of
  the weights: resident set, so tensors, arrays and Python objects alike. The second figure is what was needed on top of
  the weights, in MB: for small models it is a constant that no weights stand beside.
- **fenced**: calls that cannot be followed; their regions stay whole. They are listed below each table.
"""


def report(zoos: dict[str, list[Row]], command: str) -> str:
    """The whole page, from the rows of each zoo."""
    commits = sorted({row["commit"] for rows in zoos.values() for row in rows if row.get("commit")})
    of_commits = f"; commit {', '.join(commits)}" if commits else ""
    head = INTRODUCTION.format(command=command, machine=machine(), versions=versions(), commits=of_commits)
    return "\n".join([head, *(line for zoo, rows in zoos.items() for line in _section(zoo, rows))])


def is_ok(row: Row) -> bool:
    return row["stage"] == "done" and bool(pruned(row)) and all(map(_part_ok, pruned(row)))


def pruned(row: Row) -> list[dict[str, Any]]:
    return [part for part in row.get("parts", {}).values() if "macs" in part]


def _part_ok(part: dict[str, Any]) -> bool:
    return part["proof_error"] <= PROOF_TOLERANCE and abs(_macs(part) - MACS_SHARE) <= MACS_TOLERANCE * MACS_SHARE


def _macs(part: dict[str, Any]) -> float:
    return part["macs"][1] / part["macs"][0]


def prune_seconds(row: Row) -> float:
    return row["seconds"]["pass"] - row["seconds"].get("proof", 0.0)


def _score_seconds(row: Row) -> float:
    return prune_seconds(row) - sum(row["seconds"].get(step, 0.0) for step in ("index", "cut"))


def _weights(row: Row) -> int:
    return sum(part["weights"] for part in pruned(row))


def _extra(row: Row) -> int:
    """Bytes on top of the weights; parts are pruned one after the other."""
    return max(part["peak"] - part["weights"] for part in pruned(row))


def peak_ratio(row: Row) -> float:
    return (_weights(row) + _extra(row)) / _weights(row)


def _total(row: Row, key: str, position: int) -> int:
    return sum(part[key][position] for part in pruned(row))


def _macs_text(row: Row) -> str:
    shares = sorted({f"{_macs(part):.3f}" for part in pruned(row)})
    return shares[0] if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"


def _result(row: Row) -> str:
    parts = row["parts"]
    if not is_ok(row):
        return f"**fails: {row['stage']}**" if row["stage"] != "done" else "**off target**"
    return "ok" if list(parts) == [""] else f"ok, parts: {len(pruned(row))} of {len(parts)}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row["name"],
    "result": _result,
    "ops": lambda row: str(sum(part["nodes"] for part in pruned(row))),
    "parameters, M": lambda row: f"{_total(row, 'params', 0) / 1e6:.2f} -> {_total(row, 'params', 1) / 1e6:.2f}",
    "groups": lambda row: f"{_total(row, 'groups', 0)} -> {_total(row, 'groups', 1)}",
    "MACs left": _macs_text,
    "proof error": lambda row: f"{max(part['proof_error'] for part in pruned(row)):.0e}",
    "capture": lambda row: f"{row['seconds']['capture']:.1f}",
    "index": lambda row: f"{row['seconds'].get('index', 0.0):.2f}",
    "score": lambda row: f"{_score_seconds(row):.2f}",
    "cut": lambda row: f"{row['seconds'].get('cut', 0.0):.2f}",
    "prune": lambda row: f"**{prune_seconds(row):.2f}**",
    "proof": lambda row: f"{row['seconds'].get('proof', 0.0):.1f}",
    "peak": lambda row: f"{peak_ratio(row):.2f} (+{_extra(row) / 1e6:.0f})",
    "run": lambda row: f"{row['seconds'].get('run', 0.0):.1f}",
    "fenced": lambda row: str(sum(len(part["fenced"]) for part in pruned(row)) or ""),
}


def _section(zoo: str, rows: list[Row]) -> Iterable[str]:
    yield f"\n## {zoo}: {sum(map(is_ok, rows))} of {len(rows)}\n"
    yield from _summary([row for row in rows if pruned(row) and "pass" in row["seconds"]])
    yield from _failures(rows)
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "|".join("---" if name in ("model", "result") else "--:" for name in COLUMNS) + "|"
    for row in rows:
        cells = [cell(row) for cell in COLUMNS.values()] if pruned(row) else [row["name"], _result(row)]
        yield "| " + " | ".join([*cells, *[""] * (len(COLUMNS) - len(cells))]) + " |"
    yield from _fences(rows)
    yield from _eager(rows)


def _summary(rows: list[Row]) -> Iterable[str]:
    if not rows:
        return
    seconds = {row["name"]: prune_seconds(row) for row in rows}
    worst = max(seconds, key=lambda name: seconds[name])
    yield (
        f"- graph + score + cut: median {median(seconds.values()):.3f} s (bar {BAR_MEDIAN} s), "
        f"worst {seconds[worst]:.2f} s, {worst} (bar {BAR_WORST:.0f} s)."
    )
    ratios = {row["name"]: peak_ratio(row) for row in rows if _weights(row) >= WEIGHTS_THAT_COUNT}
    if ratios:
        worst = max(ratios, key=lambda name: ratios[name])
        yield (
            f"- peak memory of the {len(ratios)} models with {WEIGHTS_THAT_COUNT / 1e6:.0f} MB of weights or more: "
            f"median {median(ratios.values()):.3f} times the weights, worst {ratios[worst]:.3f}, {worst} "
            f"(bar {BAR_PEAK:.0f})."
        )
    if small := [_extra(row) / 1e6 for row in rows if _weights(row) < WEIGHTS_THAT_COUNT]:
        worst_text = f"{median(small):.0f} MB on top of the weights in the median, {max(small):.0f} at most"
        yield f"- the {len(small)} smaller ones need {worst_text}."
    yield f"- largest proof error: {max(part['proof_error'] for row in rows for part in pruned(row)):.1e} (bar 1e-9).\n"


def _failures(rows: list[Row]) -> Iterable[str]:
    for row in (row for row in rows if not is_ok(row)):
        what = row.get("error") or f"{_macs_text(row)} of the MACs are left"
        yield f"- **{row['name']}**: {what[:500]}"
    yield ""


def _fences(rows: list[Row]) -> Iterable[str]:
    """Every fenced call with the models that have it."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for part in pruned(row):
            for where, why in part["fenced"]:
                found.setdefault(f"{where.partition(' (')[0]}: {why}", {})[row["name"]] = None
    if found:
        yield "\nFenced calls:\n"
        yield from (f"- {what} ({', '.join(names)})" for what, names in sorted(found.items()))


def _eager(rows: list[Row]) -> Iterable[str]:
    """What stays in eager PyTorch in models that are captured in part."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for line in row.get("eager", ()):
            found.setdefault(line[:300], {})[row["name"]] = None
    if found:
        yield "\nLeft in eager PyTorch:\n"
        yield from (f"- {what} ({', '.join(names)})" for what, names in found.items())


def machine() -> str:
    """The processor's name and the number of cores."""
    names = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def versions() -> str:
    found = []
    for package in ("planish", "torch", "torchvision", "transformers", "numpy", "scipy"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join([f"Python {platform.python_version()}", *found])
