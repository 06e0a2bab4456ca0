"""ONNX files come in."""

from .module import OnnxModule, import_onnx

__all__ = ["OnnxModule", "import_onnx"]
