"""Networks pruned without labels and without fine-tuning, with and without compensation."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from data import Images, cifar10, imagenet, normalise_cifar, normalise_lite0
from models import efficientnet_lite0
from pruning_methods import by_planish, by_torch_pruning, macs
from pruning_training import accuracy
from resnet20 import resnet20
from rich.table import Table
from torch import nn

BATCH = 20
SCOPES = ("global", "layer", "isomorphic")
METHODS = (("bias",), ("batch-norm",), ("reconstruct",), ("bias", "reconstruct", "batch-norm"))
HEADINGS = ("MACs wanted", "pruner", "MACs left", "compensation", "top-1")


@dataclass(frozen=True)
class Case:
    """A network, the images that compensation sees without their labels, and others that are scored."""

    title: str
    model: nn.Module
    seen: Images
    scored: Images
    normalise: Callable[[torch.Tensor], torch.Tensor]
    shares: tuple[float, ...]

    @property
    def batches(self) -> list[torch.Tensor]:
        return list(self.normalise(self.seen.pixels).split(BATCH))

    @property
    def image(self) -> torch.Tensor:
        return self.batches[0][:1]


def lite0(folder: Path) -> Case:
    """100 photographs are seen, 400 others are scored."""
    images = imagenet(folder)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    title = "EfficientNet-Lite0, ImageNet top-1 in percent, not fine-tuned"
    return Case(title, efficientnet_lite0()[0], images[order[:100]], images[order[100:]], normalise_lite0, (0.85, 0.7))


def resnet20_cifar10(folder: Path, cache: Path) -> Case:
    """500 training images are seen, all test images are scored."""
    train = cifar10(folder, "train", cache)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    title = "ResNet-20, CIFAR-10 test accuracy in percent, not fine-tuned"
    test, model = cifar10(folder, "test", cache), resnet20(folder / "resnet20.safetensors")
    return Case(title, model, train[order[:500]], test, normalise_cifar, (0.7, 0.5, 0.35))


def scores(case: Case) -> Iterator[tuple[str, ...]]:
    """The rows of the table, one after the other."""
    full = macs(case.model, case.image)
    yield "1", "none", "1.0000", "", _score(case.model, case)
    for share in case.shares:
        for pruner, how, network in networks(case, share):
            yield f"{share:g}", pruner, f"{macs(network, case.image) / full:.4f}", how, _score(network, case)


def networks(case: Case, share: float) -> Iterator[tuple[str, str, nn.Module]]:
    """(pruner, compensation, network). Torch-Pruning has no compensation of its own: its networks get the usual
    re-estimation of batch-norm statistics."""
    for scope in SCOPES:
        for methods in ((), *METHODS):
            pruner = by_planish("l1", case.batches, scope=scope, normalizer="mean", compensate=methods)
            yield f"planish, {scope}", " + ".join(methods) or "none", pruner(case.model, case.image, share)
    for name, options in (("Torch-Pruning", {}), ("Torch-Pruning, global", {"global_pruning": True})):
        cut = by_torch_pruning("l1", **options)(case.model, case.image, share)
        yield name, "none", cut
        yield name, "batch-norm", reestimate(cut, case.batches)


@torch.no_grad()
def reestimate(model: nn.Module, batches: list[torch.Tensor]) -> nn.Module:
    """The same network with batch-norm statistics averaged over the batches (Li et al., "EagleEye", ECCV 2020)."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    for batch in batches:
        model(batch)
    return model.eval()


def table(title: str, rows: Iterable[tuple[str, ...]]) -> Table:
    shown = Table(title=title, title_justify="left")
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading in ("pruner", "compensation") else "right")
    for row in rows:
        shown.add_row(*row)
    return shown


def _score(model: nn.Module, case: Case) -> str:
    return f"{accuracy(model, case.scored, case.normalise, 50):.2f}"
