"""Images for benchmarks: CIFAR-10 and ImageNet photographs from folders, decoded once.

A folder of CIFAR-10 holds `train.zip` and `test.zip` with `class/file.jpg`, classes numbered in alphabetical order. A
folder of ImageNet photographs holds 224 x 224 JPEGs and `labels.json` (`labels`: file -> class index).
"""

import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """pixels [count, 3, height, width] in uint8, labels [count] in int64."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: slice | torch.Tensor) -> "Images":
        return Images(self.pixels[which], self.labels[which])


def cifar10(folder: Path, split: str, cache: Path) -> Images:
    """The images of `split` ("train" or "test") in the order of their names; decoded JPEGs are kept in `cache`."""
    stored = cache / f"cifar10-{split}.safetensors"
    if not stored.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        decoded = _read_zip(folder / f"{split}.zip")
        aside = stored.with_suffix(f".{os.getpid()}")
        save_file({"pixels": decoded.pixels, "labels": decoded.labels}, aside)
        os.replace(aside, stored)
    tensors = load_file(stored)
    return Images(tensors["pixels"], tensors["labels"])


def imagenet(folder: Path) -> Images:
    """All labelled photographs of a folder in the order of their names."""
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["labels"]
    names = sorted(labels)
    pixels = torch.stack([_pixels((folder / name).read_bytes()) for name in names])
    return Images(pixels, torch.tensor([int(labels[name]) for name in names]))


def normalise_cifar(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 as the ResNet-20 of the CIFAR folder expects it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
    return (pixels.float() / 255 - mean) / std


def normalise_lite0(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 as EfficientNet-Lite0 expects it."""
    return (pixels.float() - 127) / 128


def _read_zip(path: Path) -> Images:
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        pixels = torch.stack([_pixels(archive.read(name)) for name in names])
    classes = [Path(name).parent.name for name in names]
    number = {name: index for index, name in enumerate(sorted(set(classes)))}
    return Images(pixels, torch.tensor([number[name] for name in classes]))


def _pixels(jpeg: bytes) -> torch.Tensor:
    return (
        torch.from_numpy(np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).copy()).permute(2, 0, 1).contiguous()
    )
