"""ONNX: float and integer graphs become checked files, and files become graphs."""

from .check import BATCHES
from .exactness import TOLERANCE
from .export import OPSET, OPSETS, OnnxReport, export_onnx
from .importing import OnnxModule, import_onnx
from .runtimes import RUNTIMES, for_runtime

__all__ = [
    "BATCHES",
    "OPSET",
    "OPSETS",
    "RUNTIMES",
    "TOLERANCE",
    "OnnxModule",
    "OnnxReport",
    "export_onnx",
    "for_runtime",
    "import_onnx",
]
