"""A bundle made ready to run: as a program of its own, or loaded into this process."""

import _ctypes
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import PlanishError, UsageError
from .bundle import Bundle, raw
from .manifest import ArraySpec

# Kernels load whole vector registers from their arrays (MODEL_ALIGNMENT of planish_runtime.h).
ALIGNMENT = 64
CALL_WRONG = 2


@dataclass(frozen=True)
class Timing:
    """Times of single runs in milliseconds. peak_rss_kib is None where the runs shared this process."""

    device: str
    runs: int
    threads: int
    min_ms: float
    p50_ms: float
    p90_ms: float
    peak_rss_kib: int | None = None
    note: str = ""


class Session(ABC):
    """A bundle on a device. `run` takes and gives C-contiguous numpy arrays in the order of the specs."""

    def __init__(self, bundle: Bundle, device: str, threads: int):
        self.bundle, self.device, self.threads = bundle, device, threads

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - most sessions have nothing to give back
        """Remove what the session has on disk."""

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Raises UsageError for inputs that do not fit, PlanishError when the model fails."""
        return self.compute(self.bundle.check_inputs(inputs))

    @abstractmethod
    def compute(self, inputs: list[np.ndarray]) -> list[np.ndarray]: ...

    def bench(self, runs: int, warmup: int) -> Timing:
        """Time single runs on the golden inputs, in this process."""
        inputs, _ = self.bundle.golden()
        for _ in range(warmup):
            self.compute(inputs)
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            self.compute(inputs)
            times.append((time.perf_counter() - start) * 1e3)
        p50, p90 = np.percentile(times, [50, 90], method="inverted_cdf")
        return Timing(self.device, runs, self.threads, min(times), float(p50), float(p90))


class RunnerSession(Session):
    """The bundle's static runner as a child process, started with a command in front where it is emulated."""

    def __init__(
        self,
        bundle: Bundle,
        device: str,
        threads: int,
        *,
        prefix: Sequence[str] = (),
        timeout: float | None = None,
        note: str = "",
    ):
        super().__init__(bundle, device, threads)
        self.prefix, self.timeout, self.note = prefix, timeout, note
        bundle.read("runner")
        self.room = tempfile.TemporaryDirectory(prefix="planish-", ignore_cleanup_errors=True)
        self.folder = bundle.extract(self.room.name, ["runner", "weights.bin"])

    def close(self) -> None:
        self.room.cleanup()

    def compute(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs = self.bundle.manifest.outputs
        paths = [str(self.folder / f"output{i}.bin") for i in range(len(outputs))]
        self.call([*self.input_options(inputs), *(word for path in paths for word in ("--output", path))])
        return [from_file(spec, path) for spec, path in zip(outputs, paths, strict=True)]

    def bench(self, runs: int, warmup: int) -> Timing:
        inputs, _ = self.bundle.golden()
        options = [*self.input_options(inputs), "--runs", str(runs), "--warmup", str(warmup)]
        facts = self.call(options)
        times = (facts[key] / 1e3 for key in ("min_us", "p50_us", "p90_us"))
        return Timing(self.device, runs, self.threads, *times, peak_rss_kib=facts["peak_rss_kib"], note=self.note)

    def input_options(self, inputs: Sequence[np.ndarray]) -> list[str]:
        options = []
        for index, array in enumerate(inputs):
            path = self.folder / f"input{index}.bin"
            path.write_bytes(raw(array))
            options += ["--input", str(path)]
        return options

    def call(self, options: Sequence[str]) -> dict[str, Any]:
        """Run the runner once -> its line of JSON."""
        command = [*self.prefix, str(self.folder / "runner"), *options, "--threads", str(self.threads)]
        status, out, error = run_child(command, self.timeout)
        if status == 0:
            return json.loads(out)
        reason = error.strip().splitlines()[-1] if error.strip() else out.strip()
        if status < 0:
            reason = f"it was ended by {signal.Signals(-status).name}"
        kind = UsageError if status == CALL_WRONG else PlanishError
        raise kind(self.device, f"the runner of '{self.bundle.manifest.name}' failed: {reason}", f"exit code {status}")


def run_child(command: Sequence[str], timeout: float | None) -> tuple[int, str, str]:
    """Run a command in a process group of its own -> (status, stdout, stderr).

    Whatever ends the wait (a time-out, Ctrl-C) ends the whole group too. Raises PlanishError after `timeout` seconds.
    """
    child: subprocess.Popen[str] | None = None
    try:
        with interrupt_held():
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        out, error = child.communicate(timeout=timeout)
        return child.returncode, out, error
    except OSError as e:
        advice = "the folder for temporary files may forbid programs: set TMPDIR to one that allows them"
        raise PlanishError(command[0], f"it cannot be started ({e.strerror})", advice) from None
    except subprocess.TimeoutExpired:
        what = f"it did not end within {timeout:g} seconds"
        raise PlanishError(Path(command[0]).name, what, "give a longer timeout or a smaller model") from None
    finally:
        if child and child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextlib.contextmanager
def interrupt_held() -> Iterator[None]:
    """Ctrl-C in the body takes effect at its end: a child that was just born is known by then, and can be ended."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    caught: list[tuple] = []
    signal.signal(signal.SIGINT, lambda *arguments: caught.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if caught:
            previous(*caught[0])


def from_file(spec: ArraySpec, path: str) -> np.ndarray:
    return np.fromfile(path, np.dtype(spec.dtype).newbyteorder("<")).astype(spec.dtype).reshape(spec.extents)


# ---------------------------------------------------------------- loaded into this process


class CArray(ctypes.Structure):
    """planish_array of planish_runtime.h."""

    _fields_ = (("name", ctypes.c_char_p), ("dtype", ctypes.c_char_p), ("bytes", ctypes.c_size_t))


class CModel(ctypes.Structure):
    """planish_model of planish_runtime.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("inputs", ctypes.c_int),
        ("outputs", ctypes.c_int),
        ("input", ctypes.POINTER(CArray)),
        ("output", ctypes.POINTER(CArray)),
        ("arena_bytes", ctypes.c_size_t),
        ("workspace_bytes", ctypes.c_size_t),
        ("weight_bytes", ctypes.c_size_t),
        ("weights", ctypes.c_void_p),
        ("run", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)),
    )


class LibrarySession(Session):
    """The C program as a shared library in this process. Each session has weights and an arena of its own."""

    def __init__(self, bundle: Bundle, device: str, threads: int):
        super().__init__(bundle, device, threads)
        with tempfile.TemporaryDirectory(prefix="planish-") as folder:
            # The loader keeps the mapping when the file is gone, and each file is a library of its own to it.
            self.library = ctypes.CDLL(str(bundle.extract(folder, ["model.so"]) / "model.so"))
        self.open = True
        entry = bundle.manifest.entry
        self.model = CModel.in_dll(self.library, f"{entry}_program")
        weights = bundle.read("weights.bin")
        if len(weights) != self.model.weight_bytes:
            what = f"weights.bin has {len(weights)} bytes, its program reads {self.model.weight_bytes}"
            raise PlanishError(bundle.manifest.name, what, "build the bundle again")
        self.library.planish_weight_memory.restype = ctypes.c_void_p
        ctypes.memmove(self.library.planish_weight_memory(ctypes.byref(self.model)), weights, len(weights))
        if self.library.planish_set_threads(threads):
            raise UsageError(device, f"{threads} threads cannot be started", "give fewer threads")
        self.lock = threading.Lock()

    def close(self) -> None:
        """End the threads and give the memory back."""
        if self.open:
            self.open = False
            self.library.planish_set_threads(1)
            _ctypes.dlclose(self.library._handle)

    def compute(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs = [aligned(spec) for spec in self.bundle.manifest.outputs]
        given = [aligned(spec, array) for spec, array in zip(self.bundle.manifest.inputs, inputs, strict=True)]
        if not self.open:
            raise PlanishError(self.bundle.manifest.name, "the session was closed", "load the bundle again")
        with self.lock:
            status = self.model.run(pointers(given), pointers(outputs))
        if status:
            raise PlanishError(self.bundle.manifest.name, f"the model returned {status}", "build the bundle again")
        return outputs


def aligned(spec: ArraySpec, content: np.ndarray | None = None) -> np.ndarray:
    """An array that starts at a multiple of ALIGNMENT: `content` itself where it does, else a new one."""
    if content is not None and content.ctypes.data % ALIGNMENT == 0:
        return content
    memory = np.zeros(spec.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    array = memory[start : start + spec.nbytes].view(spec.dtype).reshape(spec.extents)
    if content is not None:
        array[...] = content
    return array


def pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


class ModuleSession(Session):
    """A module for TVM's runtime, on this machine's CPU or its first CUDA device."""

    def __init__(self, bundle: Bundle, device: str, threads: int):
        super().__init__(bundle, device, threads)
        import tvm  # here: bundles of C programs run without it
        from tvm import relax

        from .tvm.quiet import without_scope_warnings
        from .tvm.threads import set_threads

        self.tensor = tvm.runtime.tensor
        self.place = tvm.cuda(0) if bundle.manifest.target["kind"] == "cuda" else tvm.cpu(0)
        if not self.place.exist:  # type: ignore[attr-defined]
            raise UsageError(device, "there is no CUDA device here", "run the bundle on a machine that has one")
        with tempfile.TemporaryDirectory(prefix="planish-") as folder:
            path = bundle.extract(folder, ["model.so"]) / "model.so"
            with without_scope_warnings():
                module = tvm.runtime.load_module(str(path))
        set_threads(threads)
        with without_scope_warnings():
            self.function = relax.VirtualMachine(module, self.place)[bundle.manifest.entry]  # type: ignore[arg-type]

    def compute(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        result = self.function(*(self.tensor(array, self.place) for array in inputs))
        results = [result] if hasattr(result, "numpy") else list(result)
        return [np.array(r.numpy()) for r in results]
