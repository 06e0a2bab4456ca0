"""How long one layer takes on a device: what mix-precision asks for each layer and precision."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from .backends.target import Target
from .ir.graph import Graph

RUNS = 50


def layer_latency(
    target: str | Target = "local", device: str = "local", *, batch: int = 1, runs: int = RUNS, threads: int = 1
) -> Callable[[Graph], float]:
    """A function Graph -> milliseconds: the shortest of some runs of the compiled graph on a device.

    Calibrated graphs run in integers from edge to edge, so that no conversion is timed that the layer's neighbours
    would not need. A machine that does other things meanwhile makes times, and choices by them, vary.

    Raises UsageError for an unknown target or device; the function does where the device cannot run the code.
    """
    row = Target.get(target)

    def milliseconds(graph: Graph) -> float:
        from .backends.bundle import Bundle
        from .backends.device import Device
        from .compiler import compile

        is_calibrated = "calibrated" in graph.properties
        recipe = "lower-integers{edges=integer}, lower-weights" if is_calibrated else ""
        with tempfile.TemporaryDirectory(prefix="planish-") as room:
            path = compile(graph, recipe=recipe, target=row, batch=batch).save(Path(room) / "layer.planish")
            return Device.get(device, threads=threads).bench(Bundle.open(path), runs).min_ms

    return milliseconds
