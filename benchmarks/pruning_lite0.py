"""EfficientNet-Lite0 pruned without labels and without fine-tuning, with and without compensation."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from data import Images, imagenet, normalise_lite0
from models import efficientnet_lite0
from pruning_methods import Pruner, by_planish, by_torch_pruning, macs
from pruning_training import accuracy
from rich.table import Table
from torch import nn

SHARES = (0.85, 0.7)
UNLABELLED = 100  # photographs that the compensation sees; the others are scored
BATCH = 20
COMPENSATION = ("bias", "reconstruct", "batch-norm")


def table(folder: Path, shares: Iterable[float] = SHARES) -> Table:
    images = imagenet(folder)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    seen, scored = images[order[:UNLABELLED]], images[order[UNLABELLED:]]
    model, image = efficientnet_lite0()
    full, batches = macs(model, image), list(normalise_lite0(seen.pixels).split(BATCH))
    shown = Table(title=f"EfficientNet-Lite0, ImageNet top-1 on {len(scored)} photographs", title_justify="left")
    for heading in ("MACs wanted", "pruner", "MACs left", "as cut", "compensated", "how"):
        shown.add_column(heading, justify="left" if heading in ("pruner", "how") else "right")
    shown.add_row("1", "none", "1.0000", f"{_accuracy(model, scored):.2f}", "", "")
    for share in shares:
        for name, plain, compensated, how in pruners(batches):
            cut = plain(model, image, share)
            after = compensated(model, image, share)
            scores = [f"{_accuracy(network, scored):.2f}" for network in (cut, after)]
            shown.add_row(f"{share:g}", name, f"{macs(cut, image) / full:.4f}", *scores, how)
    return shown


def pruners(batches: list[torch.Tensor]) -> list[tuple[str, Pruner, Pruner, str]]:
    """(name, as cut, compensated, how). Torch-Pruning has no compensation of its own: its networks get the usual
    re-estimation of batch-norm statistics."""
    rows: list[tuple[str, Pruner, Pruner, str]] = []
    for scope in ("global", "layer", "isomorphic"):
        options = {"scope": scope, "normalizer": "mean"}
        with_data = by_planish("l1", batches, compensate=COMPENSATION, **options)
        rows.append((f"planish, {scope}", by_planish("l1", **options), with_data, ", ".join(COMPENSATION)))
    for name, options in (("Torch-Pruning", {}), ("Torch-Pruning, global", {"global_pruning": True})):
        plain = by_torch_pruning("l1", **options)
        rows.append((name, plain, then(plain, lambda network: reestimate(network, batches)), "batch-norm"))
    return rows


def then(pruner: Pruner, adjust: Callable[[nn.Module], nn.Module]) -> Pruner:
    return lambda model, image, share: adjust(pruner(model, image, share))


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


def _accuracy(model: nn.Module, images: Images) -> float:
    return accuracy(model, images, normalise_lite0, 50)
