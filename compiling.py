"""What `planish compile` does: look at everything that can be wrong first, then work, then write."""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from .backends.target import Target
from .backends.tile_file import check_tuning
from .compiler import DEFAULT_RECIPE, CompiledModel
from .compiler import compile as compile_graph
from .inspection import BUNDLE_SUFFIX
from .ir.errors import UsageError
from .ir.files import check_writable
from .ir.graph import Graph
from .passes.base import Context
from .passes.pipeline import Pipeline
from .progress import ProgressBars
from .samples import DATA_FORMS, MEAN, STD, Samples, open_samples
from .sources import checked_model, graph_of, load_model
from .tables import byte_count, spaced
from .terminal import View


@dataclass(frozen=True)
class Order:
    """The words of the command line, as they were given."""

    model: str
    args: str | None
    recipe: str | None
    target: str
    data: str | None
    mean: str | None
    std: str | None
    output: str | None
    onnx: str | None
    runtime: str | None
    batch: str | None
    seed: int
    fuel: int | None
    cache: bool
    tune: int
    tiles: str | None


def compile_view(order: Order) -> View:
    """Compile, write the files, and show the report. Nothing is written before all the work is done."""
    target, pipeline = Target.get(order.target), pipeline_of(order)
    batch = batch_of(order.batch)
    if order.tune:
        check_tuning(order.tune, target, batch, order.tiles)
    samples = samples_of(order)
    refuse_missing_data(pipeline, samples)
    with ProgressBars() as bars:
        with bars.step("capture"):
            started = time.perf_counter()
            found = load_model(order.model, order.args)
            bundle = Path(order.output or f"{found.name}{BUNDLE_SUFFIX}")
            for path in filter(None, (bundle, order.onnx)):
                check_writable(Path(path))
            properties = found.model.properties if isinstance(found.model, Graph) else ()
            pipeline.check(properties, Context(data=() if samples else None, target=target))
            model = graph_of(found) if samples else checked_model(found)
            captured = time.perf_counter() - started
        compiled = compile_graph(
            model,
            found.args,
            recipe=pipeline,
            target=target,
            data=samples.batches(model.inputs) if samples and isinstance(model, Graph) else None,
            batch=batch,
            seed=order.seed,
            fuel=order.fuel,
            progress=bars,
            cache=order.cache,
            tune=order.tune,
            tiles=order.tiles,
        )
        compiled.report.seconds["capture"] = compiled.report.seconds.get("capture", 0.0) + captured
        with bars.step("write"):
            written = write(compiled, bundle, Path(order.onnx) if order.onnx else None)
    return View({**compiled.report.as_dict(), "written": written}, spaced(compiled.report, _written_text(written)))


def pipeline_of(order: Order) -> Pipeline:
    """The recipe, for the runtime of the ONNX file where one is named."""
    pipeline = Pipeline.parse(order.recipe or DEFAULT_RECIPE)
    if order.runtime is None:
        return pipeline
    if order.onnx is None:
        raise UsageError("--for", f"'{order.runtime}' runs ONNX files, and none is written", "add --onnx FILE")
    from .backends.onnx import for_runtime

    return for_runtime(pipeline, order.runtime)


def write(compiled: CompiledModel, bundle: Path, onnx: Path | None) -> dict[str, int]:
    """The files and their bytes."""
    if onnx:
        from .backends.onnx import export_onnx

        export_onnx(compiled.graph, onnx, recipe=compiled.report.recipe)
    compiled.save(bundle)
    return {str(path): path.stat().st_size for path in (bundle, onnx) if path}


def _written_text(written: dict[str, int]) -> Text:
    return Text("\n".join(f"wrote {path}, {byte_count(size)}" for path, size in written.items()))


def samples_of(order: Order) -> Samples | None:
    """The data that was named. Raises UsageError for options about images without data."""
    if order.data is None:
        if order.mean or order.std:
            raise UsageError("--mean, --std", "no data was given", "add --data with a folder of images")
        return None
    return open_samples(order.data, numbers("--mean", order.mean) or MEAN, numbers("--std", order.std) or STD)


def refuse_missing_data(pipeline: Pipeline, samples: Samples | None) -> None:
    for entry in pipeline:
        if "data" in entry.needed() and samples is None:
            raise UsageError(entry.name, "no data was given", f"add --data; {DATA_FORMS}")


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """`127` or `123.7,116.3,103.5`; nothing for None."""
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(option, f"cannot read '{text}'", "expected one number, or one per channel") from None


def batch_of(text: str | None) -> int | str | None:
    if text is None or text == "dynamic":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UsageError("--batch", f"'{text}' was given", "expected a number of at least 1, or 'dynamic'")
    return int(text)
