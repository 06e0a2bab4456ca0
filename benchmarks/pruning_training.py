"""The one fine-tuning and the one scoring that every pruned network gets."""

from dataclasses import dataclass

import torch
from data import Images
from torch import nn
from torch.nn import functional

PADDING = 4  # of the random crop


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum 0.9 and a cosine schedule after a linear warm-up.

    bf16  products in bfloat16 (autocast); weights, statistics, scoring stay in float32
    """

    epochs: int = 3
    batch: int = 128
    rate: float = 0.04
    weight_decay: float = 5e-4
    warm_up: int = 100
    bf16: bool = True


def finetune(model: nn.Module, images: Images, normalise, recipe: Recipe, seed: int) -> None:
    """Train in place. Batches and augmentation depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * (len(images) // recipe.batch)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True
    )
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=recipe.warm_up)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - recipe.warm_up)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [recipe.warm_up])
    model.to(memory_format=torch.channels_last).train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: len(order) // recipe.batch * recipe.batch].split(recipe.batch):
            batch = images[chosen]
            pixels = normalise(augment(batch.pixels, generator)).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                outputs = model(pixels)
            loss = functional.cross_entropy(outputs.float(), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random crop out of the padded image and a random flip, for each image of uint8 [count, 3, size, size]."""
    count, _, size, _ = pixels.shape
    padded = functional.pad(pixels, [PADDING] * 4)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1, 1, 1), generator=generator)
    flipped = torch.randint(0, 2, (count, 1, 1, 1), generator=generator).bool()
    columns = torch.arange(size).view(1, 1, 1, size)
    rows = torch.arange(size).view(1, 1, size, 1) + top
    columns = torch.where(flipped, size - 1 - columns, columns) + left
    image = torch.arange(count).view(-1, 1, 1, 1)
    return padded[image, torch.arange(3).view(1, 3, 1, 1), rows, columns]


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, normalise, batch: int = 250) -> float:
    """Top-1 in percent, in eval form and float32."""
    model.eval()
    hits = sum(
        int((model(normalise(pixels)).argmax(1) == labels).sum())
        for pixels, labels in zip(images.pixels.split(batch), images.labels.split(batch), strict=True)
    )
    return 100 * hits / len(images)
