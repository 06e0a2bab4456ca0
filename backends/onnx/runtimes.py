"""What the runtimes of ONNX files want: one row each."""

from dataclasses import dataclass, replace

from ...ir.errors import UsageError
from ...passes.pipeline import Pipeline
from ...passes.pipeline_text import did_you_mean


@dataclass(frozen=True)
class Runtime:
    """How activations are stored that a runtime's integer kernels read, and why."""

    activations: str
    why: str


RUNTIMES = {
    "onnxruntime-x86": Runtime("uint8", "its x86 kernels multiply uint8 by int8; int8 runs in float by default"),
    "onnxruntime-arm": Runtime("int8", "its ARM kernels multiply int8 by int8"),
    "openvino": Runtime("uint8", "its x86 kernels multiply uint8 by int8"),
}
_8_BITS = ("int8", "uint8", "target")


def for_runtime(pipeline: Pipeline, name: str) -> Pipeline:
    """The same recipe with 8-bit activations as this runtime wants them. Raises UsageError for an unknown name."""
    if name not in RUNTIMES:
        advice = did_you_mean(name, RUNTIMES) or f"known are {', '.join(RUNTIMES)}"
        raise UsageError("--for", f"unknown runtime '{name}'", advice)
    activations = RUNTIMES[name].activations
    return Pipeline(
        replace(entry, activations=activations) if getattr(entry, "activations", None) in _8_BITS else entry
        for entry in pipeline
    )
