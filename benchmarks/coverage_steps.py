"""The steps of one prune as the coverage benchmark times them, and the memory that they take.

Time is that of the processor (user and system) in a process with one thread: what a clock on the wall shows where
nothing else runs, and fair on a machine that others use too.

What capture leaves behind is collected before the clock starts: torch.export makes millions of objects, and the
interpreter would look through them at some moment of the pass.

Memory is the resident set's high-water mark (VmHWM of Linux, set back through /proc/self/clear_refs after the allocator
gave its free pages back) from before the index graph to after the cut, the weights included: tensors, numpy arrays and
Python objects alike, whoever allocated them.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import planish
from planish.passes.base import Context
from planish.passes.prune import prune_channels

SHARE = 0.5  # of the multiply-accumulates remains


class Watch:
    """Seconds of processor time by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started


# Functions of the pass, and the steps that they are.
STEPS = {"IndexGraph": "index", "cut": "cut", "prove": "proof"}


class TimedSteps:
    """While it is entered, the functions of `prune-channels` report to a watch.

    The peak is read where the proof begins: it runs both graphs in float64, and is no part of what is compared.
    """

    def __init__(self, watch: Watch):
        self.watch = watch
        self.peak = 0

    def __enter__(self) -> "TimedSteps":
        self._originals = {name: getattr(prune_channels, name) for name in STEPS}
        for name, function in self._originals.items():
            setattr(prune_channels, name, self._timed(name, function))
        return self

    def __exit__(self, *_: Any) -> None:
        for name, function in self._originals.items():
            setattr(prune_channels, name, function)

    def _timed(self, name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "prove":
                self.peak = status("VmHWM")
            with self.watch.step(STEPS[name]):
                return function(*args, **kwargs)

        return call


def prune(graph: planish.Graph, watch: Watch) -> dict[str, Any]:
    """Run the pass and return what it says, the bytes of the weights and the bytes of the peak with the weights."""
    weights = sum(tensor.nbytes for tensor in {id(t): t for t in graph.weights.values()}.values())
    nodes = sum(node.op == "call_function" for node in graph.nodes)
    gc.collect()
    before = reset_peak()
    with TimedSteps(watch) as timed, watch.step("pass"):
        result = prune_channels.PruneChannels(macs=SHARE).run(graph, Context())
    peak = timed.peak or status("VmHWM")
    frozen = [f"{skip.where}: {skip.why}" for skip in result.skipped if "cannot be followed" in skip.why]
    facts = {key: result.details[key] for key in ("params", "macs", "groups", "fenced", "proof_error")}
    return facts | {"nodes": nodes, "weights": weights, "peak": weights + peak - before, "frozen": frozen}


def status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def reset_peak() -> int:
    """Give free pages back and set the high-water mark to what is resident now, which is returned in bytes."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")
