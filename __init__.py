"""Planish: make a PyTorch model thin and fast where it has to run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.target import Target
    from .compiler import CompiledModel, compile, reports
    from .ir.capture import capture
    from .ir.errors import PlanishError
    from .ir.graph import Graph
    from .ir.parts import Parts, capture_parts
    from .latency import layer_latency
    from .loader import LoadedModel, load
    from .passes.base import Context, Pass, Result, Skip, wrap
    from .passes.pipeline import Pipeline
    from .passes.rebind import rebind
    from .report import Report
else:
    # Modules are imported when a name is first used: `planish --help` need not wait for torch.
    _HOMES = {
        ".backends.target": ("Target",),
        ".compiler": ("CompiledModel", "compile", "reports"),
        ".ir.capture": ("capture",),
        ".ir.errors": ("PlanishError",),
        ".ir.graph": ("Graph",),
        ".ir.parts": ("Parts", "capture_parts"),
        ".latency": ("layer_latency",),
        ".loader": ("LoadedModel", "load"),
        ".passes.base": ("Context", "Pass", "Result", "Skip", "wrap"),
        ".passes.pipeline": ("Pipeline",),
        ".passes.rebind": ("rebind",),
        ".report": ("Report",),
    }
    _HOME = {name: module for module, names in _HOMES.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME[name], __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "CompiledModel",
    "Context",
    "Graph",
    "LoadedModel",
    "Parts",
    "Pass",
    "Pipeline",
    "PlanishError",
    "Report",
    "Result",
    "Skip",
    "Target",
    "capture",
    "capture_parts",
    "compile",
    "layer_latency",
    "load",
    "rebind",
    "reports",
    "wrap",
]
