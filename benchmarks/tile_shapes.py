"""Layers of the models in `models.py` whose register tiles are compared, thirty of them by name."""

from dataclasses import replace
from typing import Any

from planish.backends.tvm.kernels import Dense, DirectConv, ExpandDepthwise, Pointwise, Requantize, Window, Winograd
from planish.backends.tvm.kernels.epilogues import Epilogue

RELU = Epilogue("relu")
RELU6 = Epilogue("relu6")
SAME = (1, 1, 1, 1)


def _conv(size: int, given: int, made: int, kernel: int = 3, stride: int = 1, *, image: bool = False) -> DirectConv:
    around = (kernel - 1) // 2
    window = Window((kernel, kernel), (stride, stride), (around,) * 4)
    return DirectConv(1, size, size, given, made, window, image=image, epilogue=RELU)


SHAPES: dict[str, Any] = {
    # EfficientNet-Lite0
    "lite0 stem 3x3/2": DirectConv(1, 224, 224, 3, 32, Window((3, 3), (2, 2), (0, 1, 0, 1)), 1, True, RELU6),
    "lite0 project 112 32-16": Pointwise(1, 112, 112, 32, 16),
    "lite0 project 28 144-40": Pointwise(1, 28, 28, 144, 40),
    "lite0 project 14 480-80": Pointwise(1, 14, 14, 480, 80),
    "lite0 project 14 672-112": Pointwise(1, 14, 14, 672, 112),
    "lite0 project 7 1152-320": Pointwise(1, 7, 7, 1152, 320),
    "lite0 head 7 320-1280": Pointwise(1, 7, 7, 320, 1280, RELU6),
    "lite0 classifier": Dense(1, 1280, 1000),
    # The expanding part of a fused pair
    "lite0 expand 112 16-96": ExpandDepthwise(1, 112, 112, 16, 96, Window((3, 3), (2, 2), SAME), RELU6, RELU6),
    "lite0 expand 14 112-672": ExpandDepthwise(1, 14, 14, 112, 672, Window((5, 5), (1, 1), (2,) * 4), RELU6, RELU6),
    # MobileNetV2
    "mobilenet-v2 project 56 144-24": Pointwise(1, 56, 56, 144, 24, Epilogue(residual="after")),
    "mobilenet-v2 project 14 384-64": Pointwise(1, 14, 14, 384, 64),
    "mobilenet-v2 project 14 576-96": Pointwise(1, 14, 14, 576, 96),
    "mobilenet-v2 project 7 960-160": Pointwise(1, 7, 7, 960, 160),
    # ResNet-18
    "resnet18 stem 7x7/2": _conv(224, 3, 64, 7, 2, image=True),
    "resnet18 3x3 56 64-64": _conv(56, 64, 64),
    "resnet18 3x3/2 56 64-128": _conv(56, 64, 128, 3, 2),
    "resnet18 3x3/2 14 256-512": _conv(14, 256, 512, 3, 2),
    "resnet18 3x3 7 512-512": _conv(7, 512, 512),
    "resnet18 winograd 28 128-128": Winograd(1, 28, 28, 128, 128, SAME, 4, RELU),
    # ResNet-50
    "resnet50 1x1 56 64-256": Pointwise(1, 56, 56, 64, 256, Epilogue("relu", residual="before")),
    "resnet50 1x1/2 56 256-512": DirectConv(1, 56, 56, 256, 512, Window((1, 1), (2, 2))),
    "resnet50 1x1 28 512-128": Pointwise(1, 28, 28, 512, 128, RELU),
    "resnet50 1x1 14 256-1024": Pointwise(1, 14, 14, 256, 1024, Epilogue("relu", residual="before")),
    "resnet50 1x1 14 1024-256": Pointwise(1, 14, 14, 1024, 256, RELU),
    "resnet50 1x1 7 2048-512": Pointwise(1, 7, 7, 2048, 512, RELU),
    # U-Net
    "unet 3x3 112 64-64": _conv(112, 64, 64),
    # ViT-tiny
    "vit-tiny qkv 197 192-576": Dense(197, 192, 576),
    "vit-tiny mlp 197 192-768": Dense(197, 192, 768, Epilogue("gelu")),
    "vit-tiny mlp 197 768-192": Dense(197, 768, 192, Epilogue(residual="after")),
}


def in_integers(spec: Any) -> Any | None:
    """The same layer in 8-bit integers; None for what is computed otherwise there."""
    if isinstance(spec, Winograd) or getattr(spec, "image", False):
        return None
    residual = "after" if spec.epilogue.residual else None
    if isinstance(spec, ExpandDepthwise):
        return replace(spec, expand=Requantize(), epilogue=Requantize())
    return replace(spec, epilogue=Requantize(residual))
