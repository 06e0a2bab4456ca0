"""Compile one kernel, run it on packed arrays and hand the result back in PyTorch's layout."""

import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm

from planish.backends.target import cpu_features
from planish.backends.tvm.arithmetic import Amx, Arithmetic, Madd, NeonFp32, Sdot, Smull, Vnni, X86Fp32
from planish.backends.tvm.build import TIR_PIPELINE
from planish.backends.tvm.kernels import Spec, pack, prim_func, round_up, signature

FILLER = 1e30  # in padding lanes: whoever reads them gives a wrong result
FILLER_BYTE = 101


@dataclass(frozen=True)
class Machine:
    """An arithmetic and the LLVM target that runs it here."""

    arithmetic: Arithmetic
    cpu: str
    features: tuple[str, ...] = ()

    def target(self) -> tvm.target.Target:
        facts: dict = {"kind": "llvm", "mcpu": self.cpu}
        if self.features:
            facts["mattr"] = list(self.features)
        return tvm.target.Target(facts)


def machines(cores: int = 1) -> dict[str, Machine]:
    """The vector units of this processor, narrowest first; plain x86-64 where it has none that we name."""
    if platform.machine() == "aarch64":
        return {"neon": Machine(NeonFp32(4, 32, cores), "generic")}
    found: dict[str, Machine] = {}
    if {"avx2", "fma"} <= set(cpu_features()):
        found["avx2"] = Machine(X86Fp32(8, 16, cores), "haswell")
    if "avx512f" in cpu_features():
        found["avx512"] = Machine(X86Fp32(16, 32, cores), "skylake-avx512", ("-prefer-256-bit",))
    return found or {"sse": Machine(X86Fp32(4, 16, cores), "x86-64")}


# For each integer arithmetic what a processor must have, and how LLVM is told.
_INTEGER_MACHINES = {
    "madd, 8 lanes": ("avx2", Madd(8, 16), "haswell", ()),
    "madd, 16 lanes": ("avx512bw", Madd(16, 32), "skylake-avx512", ("-prefer-256-bit",)),
    "vnni, 8 lanes": ("avx_vnni", Vnni(8, 16), "haswell", ("+avxvnni",)),
    "vnni, 16 lanes": ("avx512vbmi", Vnni(16, 32), "skylake-avx512", ("-prefer-256-bit", "+avx512vnni", "+avx512vbmi")),
    "amx": (
        "amx_int8",
        Amx(16, 32),
        "skylake-avx512",
        ("-prefer-256-bit", "+avx512vnni", "+avx512vbmi", "+amx-tile", "+amx-int8"),
    ),
    "smull": ("asimd", Smull(4, 32), "generic", ()),
    "sdot": ("asimddp", Sdot(4, 32), "generic", ("+dotprod",)),
}


def integer_machines() -> dict[str, Machine]:
    """The ways in which this processor multiplies integers."""
    return {
        name: Machine(arithmetic, cpu, features)
        for name, (needs, arithmetic, cpu, features) in _INTEGER_MACHINES.items()
        if needs in cpu_features()
    }


def best_integer_machines() -> list[Machine]:
    """The two fastest of them, the fastest last: on a matrix unit, and without it."""
    return list(integer_machines().values())[-2:]


@lru_cache(maxsize=256)
def _compiled(spec: Spec, machine: Machine) -> tvm.runtime.Executable:
    """One kernel serves all the tests that only differ in its operands. Lowered as those of a model are."""
    function = prim_func(spec, machine.arithmetic).with_attr("global_symbol", "kernel")
    return tvm.compile(function, machine.target(), tir_pipeline=TIR_PIPELINE)


class Runner:
    """Runs specs on one machine."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.arithmetic = machine.arithmetic

    def compile(self, spec: Spec) -> tvm.runtime.Executable:
        return _compiled(spec, self.machine)

    def packed(self, x: torch.Tensor) -> np.ndarray:
        """NCHW -> NHWCp with filler in the padding lanes."""
        n, c, h, w = x.shape
        values = x.permute(0, 2, 3, 1).numpy()
        filler = FILLER if values.dtype == np.float32 else FILLER_BYTE
        array = np.full((n, h, w, round_up(c, self.arithmetic.lanes)), filler, values.dtype)
        array[..., :c] = values
        return array

    def call(
        self, spec: Spec, inputs: list[np.ndarray], weights: tuple = (), residual: np.ndarray | None = None
    ) -> np.ndarray:
        """The kernel's raw output for raw arrays; shapes and dtypes are checked against the signature."""
        batch = inputs[0].shape[0]
        shapes = signature(spec, self.arithmetic)
        arrays = pack(spec, self.arithmetic, *[w.numpy() if isinstance(w, torch.Tensor) else w for w in weights])

        def sized(shape: tuple[int | None, ...]) -> tuple[int, ...]:
            return tuple(batch if s is None else s for s in shape)

        assert [a.shape for a in inputs] == [sized(s) for s in shapes.inputs]
        assert [a.shape for a in arrays] == [sized(s) for s in shapes.weights]
        assert (residual is None) == (shapes.residual is None)
        output = np.full(sized(shapes.output), np.nan if shapes.result == "float32" else FILLER_BYTE, shapes.result)
        given = [*inputs, *arrays, *([] if residual is None else [residual]), output]
        assert [str(a.dtype) for a in given] == [dtype for _, dtype in shapes.parameters()]
        tensors = [tvm.runtime.tensor(array) for array in given]
        self.compile(spec)["kernel"](*tensors)
        return tensors[-1].numpy()

    def images(
        self, spec: Spec, x: torch.Tensor, *weights: torch.Tensor | None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A kernel from packed to packed activations: NCHW in, NCHW out (padding lanes dropped)."""
        added = None if residual is None else self.packed(residual)
        source = x.numpy() if getattr(spec, "image", False) else self.packed(x)
        return unpacked(self.call(spec, [source], weights, added), channels_of(spec))


def channels_of(spec: Spec) -> int:
    return getattr(spec, "out_channels", None) or spec.channels  # type: ignore[union-attr]


def unpacked(array: np.ndarray, channels: int) -> torch.Tensor:
    return torch.from_numpy(array[..., :channels]).permute(0, 3, 1, 2).double()


@pytest.fixture(params=sorted(machines()))
def runner(request: pytest.FixtureRequest) -> Runner:
    return Runner(machines()[request.param])


@pytest.fixture(params=sorted(integer_machines()))
def integers(request: pytest.FixtureRequest) -> Runner:
    return Runner(integer_machines()[request.param])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every case runs on every way of multiplying; the two widths of a way, which share their code, take turns.

    The turns are those of Thue and Morse, so that every value of every parameter meets both widths.
    """
    pairs: dict[tuple, dict[str, list[pytest.Item]]] = {}
    for item in (item for item in items if item.path.parent == HERE):  # the hook is called for all folders
        options = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        way, width = _way_and_width(options)
        # One compilation serves all operands; tests without cases run on both widths.
        case = tuple(repr(v) for name, v in sorted(options.items()) if (name, type(v)) not in OPERANDS)
        if width and case:
            pairs.setdefault((item.path, item.originalname, case, way), {}).setdefault(width, []).append(item)
    both = [widths for widths in pairs.values() if len(widths) == 2]
    turns = (number.bit_count() % 2 for number in range(len(both)))
    left_out = {item for turn, widths in zip(turns, both, strict=True) for item in widths[sorted(widths)[turn]]}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


HERE = Path(__file__).parent
# What does not change the kernel: random and saturating operands, and one special number among ones.
OPERANDS = (("case", bool), ("extreme", bool), ("special", str))


def _way_and_width(options: dict[str, Any]) -> tuple[str, str]:
    """The way of multiplying that a test asks for, by one of three fixtures, and its width; takes it out of options."""
    if "integers" in options:
        way, _, width = options.pop("integers").partition(", ")
    elif "stored" in options:
        width, way = options.pop("stored")
    else:
        way, width = "floats", options.pop("runner", "")
    return way, width


@pytest.fixture
def widest() -> Runner:
    """The fastest machine here, for what does not depend on the lanes."""
    return Runner(list(machines().values())[-1])


def close(got: torch.Tensor, wanted: torch.Tensor, products: int) -> None:
    """float32 against float64: one rounding error per product of order 1, in the worst order."""
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=2e-7 * (products + 8))
