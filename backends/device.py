"""Where a bundle runs: on this machine, or on an emulated one."""

import difflib
import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.errors import UsageError
from .bundle import Bundle
from .emulator import ENGINES, emulator_command
from .manifest import Golden
from .session import LibrarySession, ModuleSession, RunnerSession, Session, Timing
from .target import cpu_features

DEFAULT_TIMEOUT = 600.0
LATER = ("ssh://", "rpc://")
EMULATED = "emulated: it says nothing about the time on a board"


@dataclass(frozen=True)
class SelfTest:
    """How near the outputs for the golden inputs came to the golden outputs; max_rel_error is |got - want| / |want|."""

    device: str
    passed: bool
    max_abs_error: float
    max_rel_error: float
    detail: str


class Device(ABC):
    """A place that runs bundles. threads: of the model; timeout: seconds for one call, None for no end."""

    name: str

    def __init__(self, threads: int = 1, timeout: float | None = DEFAULT_TIMEOUT):
        if threads < 1:
            raise UsageError(self.name, f"{threads} threads were asked for", "give at least 1")
        self.threads, self.timeout = threads, timeout

    @staticmethod
    def get(name: str, *, threads: int = 1, timeout: float | None = DEFAULT_TIMEOUT) -> "Device":
        """The device of this name: "local", "emulator", "emulator:qemu" or "emulator:unicorn".

        Raises UsageError for an unknown name.
        """
        if name.startswith(LATER):
            what = f"device '{name}' is not supported by this version"
            raise UsageError("device", what, f"use {', '.join(DEVICES)}, or copy the bundle and run its runner there")
        if name not in DEVICES:
            near = difflib.get_close_matches(name, DEVICES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(DEVICES)}"
            raise UsageError("device", f"unknown device '{name}'", hint)
        kind, *arguments = DEVICES[name]
        return kind(*arguments, threads=threads, timeout=timeout)

    @abstractmethod
    def load(self, bundle: Bundle) -> Session:
        """Make a bundle ready for many runs; close the session, or use it in a `with`.

        Raises BundleError when this device cannot run the bundle's code, UsageError when something is not installed.
        """

    def run(self, bundle: Bundle, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for these inputs, in the order of the bundle's specs."""
        with self.load(bundle) as session:
            return session.run(inputs)

    def bench(self, bundle: Bundle, runs: int = 50, warmup: int = 3) -> Timing:
        """Times of single runs on the golden inputs."""
        if runs < 1 or warmup < 0:
            raise UsageError(self.name, f"{runs} runs after {warmup} were asked for", "give at least 1 run")
        with self.load_for_timing(bundle) as session:
            return session.bench(runs, warmup)

    def load_for_timing(self, bundle: Bundle) -> Session:
        return self.load(bundle)

    def verify(self, bundle: Bundle) -> SelfTest:
        """Run the golden inputs and compare with the golden outputs."""
        inputs, wanted = bundle.golden()
        with self.load(bundle) as session:
            return compare(session.device, session.run(inputs), wanted, bundle.manifest.golden)


class LocalDevice(Device):
    """This machine. What its CPU cannot run is refused before the first instruction."""

    name = "local"

    def load(self, bundle: Bundle) -> Session:
        return self.start(bundle, in_process="model.so" in bundle.contents)

    def load_for_timing(self, bundle: Bundle) -> Session:
        # A process of its own shows the model's peak memory, where the bundle has a program to start.
        return self.start(bundle, in_process="runner" not in bundle.contents)

    def start(self, bundle: Bundle, *, in_process: bool) -> Session:
        if platform.system() != "Linux":
            raise UsageError(self.name, f"this is {platform.system()}, and bundles run on Linux", "use a Linux machine")
        bundle.check_machine(platform.machine(), cpu_features())
        if bundle.manifest.kind == "tvm":
            return ModuleSession(bundle, self.name, self.threads)
        if in_process:
            return LibrarySession(bundle, self.name, self.threads)
        return RunnerSession(bundle, self.name, self.threads, timeout=self.timeout)


class EmulatorDevice(Device):
    """A machine of the bundle's own target, emulated. Results are exact; times are not a board's."""

    name = "emulator"

    def __init__(self, engine: str = "", **options):
        super().__init__(**options)
        self.engine = engine

    def load(self, bundle: Bundle) -> Session:
        if bundle.manifest.kind != "c":
            what = f"'{bundle.manifest.name}' is a module for TVM's runtime"
            raise UsageError(self.name, what, "the emulator runs C bundles: build for a board, or use 'local'")
        engine, prefix = emulator_command(bundle.manifest.target, self.engine)
        if engine == "unicorn" and self.threads > 1:
            raise UsageError(self.name, "Unicorn emulates one thread", "give threads=1 or apt install qemu-user")
        name = f"{self.name}:{engine}"
        return RunnerSession(bundle, name, self.threads, prefix=prefix, timeout=self.timeout, note=EMULATED)


DEVICES: dict[str, tuple] = {
    "local": (LocalDevice,),
    "emulator": (EmulatorDevice,),
    **{f"emulator:{engine}": (EmulatorDevice, engine) for engine in ENGINES},
}


def compare(device: str, got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], golden: Golden) -> SelfTest:
    absolute = relative = 0.0
    failed: list[str] = []
    for index, (g, w) in enumerate(zip(got, wanted, strict=True)):
        exact = w.dtype.kind != "f"
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            error = np.where(g == w, 0.0, np.abs(g.astype(np.float64) - w.astype(np.float64)))
            limit = np.zeros_like(error) if exact else golden.atol + golden.rtol * np.abs(w.astype(np.float64))
            share = np.where(error == 0, 0.0, error / np.abs(w.astype(np.float64)))
        if not np.all(error <= limit):
            failed.append(f"output {index}: {int(np.sum(~(error <= limit)))} of {w.size} values are off")
        # numpy's maximum keeps a NaN, Python's may lose it.
        absolute = float(np.maximum(absolute, error.max(initial=0)))
        relative = float(np.maximum(relative, share.max(initial=0)))
    detail = "; ".join(failed) or f"within {golden.rtol:g} relative and {golden.atol:g} absolute"
    return SelfTest(device, not failed, absolute, relative, detail)
