"""A lowered Relax module -> a C program: sources, weights and one object file, with no runtime but libc."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from ...ir.errors import BuildError
from ...ir.files import write_aside
from ...ir.shapes import TensorSpec
from ..linker import find_linker
from ..manifest import IDENTIFIER, ArraySpec
from ..target import Target
from ..tvm.build import tvm_target
from .compile import ALIGNMENT, Kernels, assembly_by_kernel, compile_kernels
from .flat import FlatMain, read_main
from .memory import Buffer, lower_bound, plan, round_up
from .text import ModelText, kernel_symbol

SHIPPED = ("planish_runtime.h", "planish_runtime.c", "runner.c")
# Kernels call expf and its like; the runtime starts threads.
LIBRARIES = ("-lm", "-lpthread")


@dataclass(frozen=True)
class KernelCall:
    """symbol: the C function; kernel: its name in the lowered module; layer: what it computes, as the caller says."""

    symbol: str
    kernel: str
    layer: str


@dataclass(frozen=True)
class CProgram:
    """A C program in `directory`. Sizes are in bytes; workspace is per thread.

    arena_lower_bound: no plan of this order of calls has a smaller arena.
    """

    name: str
    directory: Path
    target: Target
    files: tuple[str, ...]
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    arena_bytes: int
    arena_lower_bound: int
    workspace_bytes: int
    weight_bytes: int
    calls: tuple[KernelCall, ...]
    kernels: Kernels | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def of_facts(facts: Mapping[str, Any], directory: Path, target: Target) -> "CProgram":
        """The program whose `facts` these are, its files in `directory`. It has no assembly text."""
        specs = {key: tuple(ArraySpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in facts[key])
                 for key in ("inputs", "outputs")}  # fmt: skip
        calls = tuple(KernelCall(**call) for call in facts["calls"])
        fixed = {"directory": directory, "target": target, "files": tuple(facts["files"]), "calls": calls}
        return CProgram(**{**facts, **specs, **fixed})

    def facts(self) -> dict[str, Any]:
        """All that is known of it beside its files, as JSON-able values."""
        skipped = ("directory", "target", "kernels")
        bare = replace(self, kernels=None)
        return {key: value for key, value in asdict(bare).items() if key not in skipped}

    def members(self) -> dict[str, Path]:
        """The program's files by their names in a bundle: what runs at the top, the sources below `code/`."""
        top = {name: self.directory / name for name in ("weights.bin", "runner", "model.so")}
        members = {name: path for name, path in top.items() if path.exists()}
        return members | {f"code/{name}": self.directory / name for name in self.files if name not in members}

    def manifest_fields(self) -> dict[str, Any]:
        """What the program knows of a bundle's manifest."""
        return {
            "kind": "c",
            "entry": self.name,
            "target": self.target.facts(),
            "inputs": [asdict(spec) for spec in self.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "arena_bytes": self.arena_bytes,
            "workspace_bytes": self.workspace_bytes,
            "weight_bytes": self.weight_bytes,
            "calls": [[call.kernel, call.layer] for call in self.calls],
        }

    def assembly(self) -> dict[str, str]:
        """The machine code of each kernel as text, with that of its parallel loops."""
        assert self.kernels is not None, "a program out of the cache has no assembly text"
        return assembly_by_kernel(self.kernels, kernel_symbol(self.name, ""))


def emit(
    lowered: tvm.IRModule,
    target: Target,
    directory: str | Path,
    *,
    name: str = "model",
    layers: Mapping[str, Sequence[str]] | None = None,
    edges: tuple[Sequence[TensorSpec], Sequence[TensorSpec]] = ((), ()),
) -> CProgram:
    """Write the C program of a lowered module into `directory`, which is replaced as a whole.

    lowered: `main` is one flat block of kernel calls (TVM's passes up to AttachGlobalSymbol), with static shapes.
    name: the prefix of the C symbols. layers: for a kernel's symbol the layers of its calls, in their order.
    edges: the model's inputs and outputs, which know what integers stand for.
    Raises BuildError for a symbolic shape, or an operation or kernel that needs TVM's runtime.
    The same module and target give the same bytes.
    """
    if not IDENTIFIER.fullmatch(name):
        raise BuildError("emit", f"'{name}' is no C identifier", "it is the prefix of the program's symbols")
    if target.kind != "cpu":
        raise BuildError(target.name, f"a C program runs on a CPU, not on '{target.kind}'", "build a TVM module")
    main = read_main(lowered, layers).with_edges(*edges)
    names = sorted({call.kernel for call in main.calls})
    kernels = compile_kernels({k: lowered[k] for k in names}, tvm_target(target), kernel_symbol(name, ""))
    buffers = arena_buffers(main)
    memory = plan(list(buffers.values()), ALIGNMENT)
    weights, offsets = pack(main.constants)
    sizes = {"arena": memory.bytes, "workspace": kernels.workspace_bytes, "weights": len(weights)}
    text = ModelText(name, main, dict(zip(buffers, memory.offsets, strict=True)), offsets, sizes)
    with write_aside(directory, directory=True) as draft:
        (draft / "weights.bin").write_bytes(weights)
        (draft / f"{name}_weights.S").write_text(text.weights())
        (draft / f"{name}.h").write_text(text.header())
        (draft / f"{name}.c").write_text(text.driver())
        for shipped in SHIPPED:
            (draft / shipped).write_bytes(Path(__file__).with_name(shipped).read_bytes())
        kernels.module.write_to_file(str(draft / "kernels.o"))
        files = tuple(sorted(file.name for file in draft.iterdir()))
    return CProgram(
        name=name,
        directory=Path(directory),
        target=target,
        files=files,
        inputs=main.inputs,
        outputs=tuple(spec for spec, _ in main.outputs),
        arena_bytes=memory.bytes,
        arena_lower_bound=lower_bound(list(buffers.values()), ALIGNMENT),
        workspace_bytes=kernels.workspace_bytes,
        weight_bytes=len(weights),
        calls=tuple(KernelCall(kernel_symbol(name, c.kernel), c.kernel, c.layer) for c in main.calls),
        kernels=kernels,
    )


def arena_buffers(main: FlatMain) -> dict[int, Buffer]:
    """The buffers that live in the arena, by index: those that are used, and are no output."""
    outputs = {place.index for _, place in main.outputs if place.kind == "buffer"}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, call in enumerate(main.calls):
        for place in call.arguments:
            if place.kind == "buffer" and place.index not in outputs:
                first.setdefault(place.index, step)
                last[place.index] = step
    return {index: Buffer(main.buffers[index], first[index], last[index]) for index in sorted(first)}


def pack(constants: Sequence[np.ndarray]) -> tuple[bytes, list[int]]:
    """Constants one after the other, each at a multiple of the alignment -> the bytes, and where each one starts."""
    content, offsets = bytearray(), []
    for constant in constants:
        content += bytes(round_up(len(content), ALIGNMENT) - len(content))
        offsets.append(len(content))
        content += constant.astype(constant.dtype.newbyteorder("<"), copy=False).tobytes()
    return bytes(content), offsets


def link_runner(program: CProgram, *, linker: str = "auto") -> Path:
    """Build `runner`, a static executable that reads weights.bin from its own folder (see runner.c).

    linker: "gcc", "zig", or "auto" for what is there. Raises BuildError when there is none or when it fails.
    """
    sources = ["runner.c", f"{program.name}.c", "planish_runtime.c", "kernels.o"]
    definitions = ["-DMODEL_LOADED_WEIGHTS", f"-DPROGRAM={program.name}_program"]
    arguments = ["-static", *definitions, *sources, *LIBRARIES]
    return find_linker(program.target.triple, linker).build(program.directory, "runner", arguments)


def link_library(program: CProgram, *, linker: str = "auto") -> Path:
    """Build `model.so`, the same program for loading into a process; its weights are filled in after loading."""
    sources = [f"{program.name}.c", "planish_runtime.c", "kernels.o"]
    arguments = ["-shared", "-fPIC", "-DMODEL_LOADED_WEIGHTS", *sources, *LIBRARIES]
    return find_linker(program.target.triple, linker, shared=True).build(program.directory, "model.so", arguments)
