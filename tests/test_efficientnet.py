"""The main job on the real model: EfficientNet-Lite0 with its ImageNet weights, pruned, here and on a board.

Unpruned it is compiled in tests/backends/test_torch_compile.py, and run on the emulated CUDA device in
tests/backends/tvm/test_cuda.py.
"""

import pytest
import torch
from efficientnet import IMAGE, graph_of

import planish

# float32 logits of order 10 after 50 layers, summed in another order than PyTorch's.
FLOAT32 = {"rtol": 0, "atol": 1e-4}


@pytest.mark.parametrize("target", ["local", "raspberry-pi-4"])
def test_compiled_outputs_agree_with_pytorch(target):
    graph = graph_of("pruned")
    compiled = planish.compile(graph, recipe="", target=target)
    with torch.no_grad():
        wanted = graph(IMAGE)
    torch.testing.assert_close(compiled(IMAGE), wanted, **FLOAT32)
    wide = "vfmadd" if target == "local" else "fmla v.4s"
    products = [layer for layer in compiled.report.layers if "mean" not in layer["kernel"]]
    assert sum(wide in layer["instruction"] for layer in products) >= 35, products
