"""Structures that every runtime is compared on, with random weights: speed depends on shapes alone."""

from .mobilenet import mobilenet_v2, mobilenet_v3_small
from .resnet import resnet18, resnet50
from .transformer import bert_mini, vit_tiny
from .unet import unet

__all__ = ["bert_mini", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnet50", "unet", "vit_tiny"]
