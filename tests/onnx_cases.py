"""What tests of integer ONNX files need of a processor."""

import platform

import pytest

from planish.backends.target import cpu_features

# onnxruntime multiplies u8 by s8 with vpmaddubsw where there is no VNNI, which saturates pairs of products in 16 bits.
SATURATES = platform.machine() == "x86_64" and not {"avx512_vnni", "avx_vnni"} & cpu_features()
needs_exact_onnxruntime = pytest.mark.skipif(SATURATES, reason="onnxruntime saturates on x86 without VNNI")
