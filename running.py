"""What `planish run`, `bench` and `verify` do with a bundle."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from .arrays import as_dtype, choose_arrays, read_arrays
from .backends.bundle import Bundle
from .backends.device import Device
from .backends.manifest import ArraySpec
from .ir.errors import UsageError
from .ir.files import check_writable, write_aside
from .progress import ProgressBars
from .tables import facts, name, number, spaced, table
from .terminal import View


def run_view(path: str, inputs: str, output: str | None, device: str, threads: int) -> View:
    """Run on the arrays of a file; write the outputs where a file is named, and show what they are like."""
    place = Device.get(device, threads=threads)
    bundle = Bundle.open(path)
    given = read_arrays(Path(inputs))
    specs = bundle.manifest.inputs
    chosen = choose_arrays(inputs, given, [spec.name for spec in specs])
    arrays = [as_dtype(inputs, array, spec.dtype) for array, spec in zip(chosen, specs, strict=True)]
    bundle.check_inputs(arrays)
    save = writer(output, bundle.manifest.outputs) if output else None
    results = working(f"run on {place.name}", lambda: place.run(bundle, arrays))
    if save:
        save(results)
    rows = [output_facts(spec, array) for spec, array in zip(bundle.manifest.outputs, results, strict=True)]
    columns = (name("output"), name("type"), number("min"), number("mean"), number("max"), name("largest at"))
    cells = [(r["name"], r["type"], *(f"{r[k]:.6g}" for k in ("min", "mean", "max")), r["largest_at"]) for r in rows]
    document = {"device": place.name, "outputs": rows, "written": output}
    return View(document, spaced(table("", columns, cells), Text(f"wrote {output}") if output else None))


def bench_view(path: str, device: str, runs: int, threads: int) -> View:
    """Times of single runs on the golden inputs."""
    place = Device.get(device, threads=threads)
    bundle = Bundle.open(path)
    timing = working(f"{runs} runs on {place.name}", lambda: place.bench(bundle, runs))
    peak = f"{timing.peak_rss_kib / 1024:.1f} MiB" if timing.peak_rss_kib else "not measured: it ran in this process"
    shown = facts(
        [
            ("device", timing.device),
            ("threads", timing.threads),
            ("runs", timing.runs),
            ("min", f"{timing.min_ms:.3f} ms"),
            ("p50", f"{timing.p50_ms:.3f} ms"),
            ("p90", f"{timing.p90_ms:.3f} ms"),
            ("peak memory", peak),
            ("note", timing.note),
        ]
    )
    return View(asdict(timing), shown)


def verify_view(path: str, device: str, threads: int) -> View:
    """Hashes, then the golden self-test; exit code 1 where its outputs are off."""
    place = Device.get(device, threads=threads)
    bundle = Bundle.open(path)
    test = working(f"self-test on {place.name}", lambda: place.verify(bundle))
    shown = facts(
        [
            ("hashes", f"right, {len(bundle.manifest.members)} members"),
            ("device", test.device),
            ("self-test", f"{'passed' if test.passed else 'FAILED'}: {test.detail}"),
            ("max abs error", f"{test.max_abs_error:.3g}"),
            ("max rel error", f"{test.max_rel_error:.3g}"),
        ]
    )
    return View({"hashes": True, **asdict(test)}, shown, int(not test.passed))


def working(label: str, work: Callable[[], Any]) -> Any:
    with ProgressBars() as bars, bars.step(label):
        return work()


def output_facts(spec: ArraySpec, array: np.ndarray) -> dict[str, Any]:
    """Shape and range of an output; `largest_at` is the index of its largest value."""
    place = [int(i) for i in np.unravel_index(int(np.argmax(array)), array.shape)]
    values = {key: float(getattr(array, key)()) for key in ("min", "mean", "max")}
    return {"name": spec.name, "type": f"{array.dtype}{list(array.shape)}", **values, "largest_at": place}


def writer(path: str, specs: tuple[ArraySpec, ...]) -> Callable[[list[np.ndarray]], None]:
    """How outputs go to a file: .npz by name, .npy for a single one. Raises UsageError for another file."""
    check_writable(Path(path))
    suffix = Path(path).suffix
    if suffix not in (".npz", ".npy") or (suffix == ".npy" and len(specs) > 1):
        what = f"{len(specs)} outputs cannot be written to a '{suffix}' file"
        raise UsageError(path, what, "expected a name that ends in .npz")

    def save(arrays: list[np.ndarray]) -> None:
        with write_aside(path) as draft, draft.open("wb") as file:
            if suffix == ".npy":
                np.save(file, arrays[0], allow_pickle=False)
            else:
                named = {spec.name: array for spec, array in zip(specs, arrays, strict=True)}
                np.savez(file, allow_pickle=False, **named)

    return save
