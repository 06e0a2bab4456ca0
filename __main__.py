"""The command line: `planish compile | inspect | run | bench | verify | passes | targets | cache | doctor`.

What takes time to import is imported inside the commands that need it.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any, Literal

import typer

from .progress import ProgressBars
from .terminal import CommandGroup, View, end_as_if_interrupted, quieten_libraries

app = typer.Typer(
    cls=CommandGroup,
    epilog="Exit codes: 0 done, 1 the work failed, 2 the call was wrong. PLANISH_DEBUG=1 shows tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PIXELS = "One number or one per channel. Default: ImageNet's."
CacheAction = Literal["show", "clear"]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
ModelSpec = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="file.py:function, package.module:function, x.pt2, x.onnx or a saved graph."),
]
ArgsSpec = Annotated[
    str | None,
    typer.Option("--args", metavar="SHAPES", help="Example inputs: 1,3,224,224 or 'f32[1,3,224,224], i64[1,16]'."),
]
BundlePath = Annotated[str, typer.Argument(metavar="BUNDLE", help="A file that `planish compile` wrote.")]
DeviceName = Annotated[
    str, typer.Option("--device", help="local, emulator, emulator:qemu or emulator:unicorn.", metavar="DEVICE")
]
Threads = Annotated[int, typer.Option("--threads", help="Threads that the model may use.", metavar="N")]


def command(name: str) -> Callable[[Callable[..., View]], Callable[..., View]]:
    """Register a function that returns a View as a command. It gets `--json`, which `CommandGroup` acts on."""

    def register(function: Callable[..., View]) -> Callable[..., View]:
        @functools.wraps(function)
        def run(*, as_json: bool = False, **options: Any) -> View:
            return function(**options)

        signature = inspect.signature(function)
        as_json = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JSON)
        parameters = [*signature.parameters.values(), as_json]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {**function.__annotations__, "as_json": JSON}
        app.command(name)(run)
        return function

    return register


@command("compile")
def compile_model(
    model: ModelSpec,
    args: ArgsSpec = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="PASSES|FILE", help="'fold-batch-norm, prune-channels{macs=0.7}' or a .toml."),
    ] = None,
    target: Annotated[str, typer.Option("--target", metavar="NAME", help="A name of `planish targets`.")] = "local",
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="file.py:function, x.npz, or a folder of images, to calibrate on."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", metavar="N[,N,N]", help=f"Subtracted from pixels. {PIXELS}")
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", metavar="N[,N,N]", help=f"Pixels are divided by it. {PIXELS}")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="The bundle to write. Default: MODEL.planish.")
    ] = None,
    onnx: Annotated[
        str | None, typer.Option("--onnx", metavar="FILE", help="Write the thinned model as ONNX too.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option("--for", metavar="RUNTIME", help="Of the ONNX file: onnxruntime-x86, onnxruntime-arm, openvino."),
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", metavar="N|dynamic", help="Batch of the code. Default: the example's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of every random choice.")] = 0,
    fuel: Annotated[
        int | None, typer.Option("--fuel", metavar="N", help="Rewrites allowed, to find a wrong one.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build the code anew, and do not keep it (see `planish cache`).")
    ] = False,
    tune: Annotated[
        int, typer.Option("--tune", metavar="N", help="Time N register tiles for each layer here, keep the fastest.")
    ] = 0,
    tiles: Annotated[
        str | None, typer.Option("--tiles", metavar="FILE", help="The file of tiles. Default: that of this core.")
    ] = None,
) -> View:
    """Make a model thin, compile it for a machine, and write a bundle."""
    from .compiling import Order, compile_view

    return compile_view(Order(model, args, recipe, target, data, mean, std, output, onnx, runtime, batch, seed, fuel,
                              not no_cache, tune, tiles))  # fmt: skip


@command("inspect")
def inspect_file(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A bundle, or anything that `compile` takes as MODEL.")],
    args: ArgsSpec = None,
    text: Annotated[bool, typer.Option("--text", help="Of a model: its graph, one op per line.")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Of a model: the cost of every node.")] = False,
) -> View:
    """Show what is in a bundle, or what a model consists of and costs."""
    from .inspection import bundle_view, graph_view, is_bundle

    if is_bundle(file):
        return bundle_view(file)
    from .sources import graph_of, load_model

    with ProgressBars() as bars, bars.step("capture"):
        graph = graph_of(load_model(file, args))
    return graph_view(file, graph, text=text, by_node=cost)


@command("run")
def run_bundle(
    bundle: BundlePath,
    inputs: Annotated[str, typer.Option("--input", "-i", metavar="FILE", help="x.npz by input name, or x.npy.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the outputs: y.npz.")
    ] = None,
    device: DeviceName = "local",
    threads: Threads = 1,
) -> View:
    """Run a bundle on arrays from a file."""
    from .running import run_view

    return run_view(bundle, inputs, output, device, threads)


@command("bench")
def bench_bundle(
    bundle: BundlePath,
    device: DeviceName = "local",
    runs: Annotated[int, typer.Option("--runs", metavar="N", help="Timed runs, one by one.")] = 50,
    threads: Threads = 1,
) -> View:
    """Time a bundle: minimum, median and 90th percentile of single runs, and peak memory."""
    from .running import bench_view

    return bench_view(bundle, device, runs, threads)


@command("verify")
def verify_bundle(bundle: BundlePath, device: DeviceName = "local", threads: Threads = 1) -> View:
    """Check every hash of a bundle, and run its golden self-test."""
    from .running import verify_view

    return verify_view(bundle, device, threads)


@command("passes")
def show_passes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show all about one pass.")] = None,
) -> View:
    """List the passes, or show one with its options."""
    from .listing import pass_view, passes_view

    return pass_view(name) if name else passes_view()


@command("targets")
def show_targets() -> View:
    """List the machines that code can be made for."""
    from .listing import targets_view

    return targets_view()


@command("cache")
def show_cache(
    action: Annotated[CacheAction, typer.Argument(metavar="show|clear", help="Clear removes all of it.")] = "show",
) -> View:
    """Show or clear the code that was built before; PLANISH_CACHE_DIR and PLANISH_CACHE_SIZE say where and how much."""
    from .caching import cache_view, clear_view

    return clear_view() if action == "clear" else cache_view()


@command("doctor")
def check_machine() -> View:
    """Check that everything needed is installed here, and say how to get what is not."""
    from .doctor import doctor_view

    with ProgressBars() as bars, bars.step("looking around"):
        return doctor_view()


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"planish {metadata.version('planish')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make a PyTorch model thin, and fast where it has to run."""


def main() -> None:
    """The entry point `planish`."""
    end_as_if_interrupted()
    quieten_libraries()
    app()


if __name__ == "__main__":
    main()
