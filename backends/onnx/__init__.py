"""ONNX, out and in: float and integer graphs become checked files, and files become modules."""

from .check import BATCHES
from .exactness import TOLERANCE
from .export import OPSET, OPSETS, OnnxReport, export_onnx

__all__ = ["BATCHES", "OPSET", "OPSETS", "TOLERANCE", "OnnxReport", "export_onnx"]
