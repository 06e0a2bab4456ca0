"""What planish compiles, on an emulated core: the program of a bundle, linked with its symbols."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from cores import RUNS, Core, Cost, cost, count
from symbols import of_program

import planish
from planish.backends.bundle import Bundle
from planish.backends.linker import COMPILE, find_linker

FOLD = "canonicalize, fold-batch-norm"
RECIPES = {
    "fp32": FOLD,
    "fp16": f"{FOLD}, to-half",
    "int8": f"{FOLD}, insert-fake-quant{{activations=target}}, calibrate, lower-integers",
}


@dataclass(frozen=True)
class Kernel:
    """A function of the program: its symbol, the layers that call it, how it works, and its cycles in one inference."""

    symbol: str
    layers: tuple[str, ...]
    what: str
    instruction: str
    cycles: float


@dataclass(frozen=True)
class Measured:
    """cost: of one inference; kernels: the most expensive first."""

    cost: Cost
    kernels: list[Kernel]


def measure(
    model: torch.nn.Module, x: torch.Tensor, core: Core, precision: str, room: Path, cores: int = 1
) -> Measured:
    """Compile a model for a core and count one inference.

    x: the example, on which eight-bit ranges are calibrated too; cores: for how many the kernels are cut, all of which
    one thread runs here.
    """
    target = replace(core.row, cores=min(cores, core.row.cores))
    with torch.no_grad():
        compiled = planish.compile(model, (x,), recipe=RECIPES[precision], target=target, data=[x])
    return inference(compiled, core, room)


def inference(compiled: planish.CompiledModel, core: Core, room: Path) -> Measured:
    """Count one inference of what was compiled for a core.

    Raises RuntimeError where the program fails its self-test: a figure for a wrong answer means nothing.
    """
    bundle = Bundle.open(compiled.save(room / f"{core.name}.planish"))
    program = link(bundle, room / core.name)
    command = [
        str(program),
        "--self-test",
        "--rtol",
        str(bundle.manifest.golden.rtol),
        "--atol",
        str(bundle.manifest.golden.atol),
    ]
    one, many = (count(core, [*command, "--runs", str(runs)], room) for runs in (1, RUNS))
    found = cost(core, one, many, of_program(program, program.parent / "code" / "kernels.o"))
    called: dict[str, Kernel] = {}
    for (kernel, layer), row in zip(bundle.manifest.calls, compiled.report.layers, strict=True):
        symbol = f"{bundle.manifest.entry}_kernel_{kernel}"
        cycles = found.by_function.get(symbol, 0.0)
        before = called.get(symbol, Kernel(kernel, (), row["kernel"], row["instruction"], cycles))
        called[symbol] = replace(before, layers=(*before.layers, layer))
    return Measured(found, sorted(called.values(), key=lambda kernel: -kernel.cycles))


def link(bundle: Bundle, folder: Path) -> Path:
    """The bundle's program as it is shipped, but with the names of its functions."""
    bundle.extract(folder)
    code, name = folder / "code", bundle.manifest.entry
    sources = ["runner.c", f"{name}.c", "planish_runtime.c", "kernels.o"]
    definitions = ["-DMODEL_LOADED_WEIGHTS", f"-DPROGRAM={name}_program"]
    linker = find_linker(bundle.manifest.target["triple"])
    out = ["-o", "../named_runner"]
    subprocess.run(
        [*linker.command, *COMPILE, "-static", *definitions, *sources, "-lm", "-lpthread", *out], cwd=code, check=True
    )
    return folder / "named_runner"
