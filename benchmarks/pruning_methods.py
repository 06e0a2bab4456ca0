"""The two pruners that are compared, behind one kind of function: (model, share of the MACs) -> smaller model."""

import copy
from collections.abc import Callable

import torch
import torch_pruning
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import planish
from planish.passes.prune.prune_channels import PruneChannels

Pruner = Callable[[nn.Module, torch.Tensor, float], nn.Module]
BISECTIONS = 12  # of Torch-Pruning's ratio: finer than one channel of ResNet-20 or EfficientNet-Lite0


def macs(model: nn.Module, image: torch.Tensor) -> int:
    """Multiply-accumulates of one image as PyTorch counts them, alike for both pruners."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2


def by_planish(criterion: str = "l1", data: list | None = None, **options: object) -> Pruner:
    """`prune-channels` with its defaults but for `options`; `data` are unlabelled batches for compensation."""

    def prune(model: nn.Module, image: torch.Tensor, share: float) -> nn.Module:
        step = planish.Pipeline([PruneChannels(macs=share, importance=criterion, **options)])
        return step.run(planish.capture(model, (image,)), planish.Context(data=data)).graph.module

    return prune


def by_torch_pruning(criterion: str = "l1", **options: object) -> Pruner:
    """Torch-Pruning's high-level pruner with group magnitude importance (Fang et al., "DepGraph: Towards Any
    Structural Pruning", CVPR 2023), its final layer ignored as its README says.

    It takes a ratio of channels: the one that comes nearest to the share of the MACs is searched by bisection, each
    try on a fresh copy.
    """

    def prune(model: nn.Module, image: torch.Tensor, share: float) -> nn.Module:
        wanted = share * macs(model, image)
        low, high, tries = 0.0, 1.0 - share / 2, []
        for _ in range(BISECTIONS):
            ratio = (low + high) / 2
            candidate = _at_ratio(model, image, criterion, ratio, options)
            left = macs(candidate, image)
            tries.append((abs(left - wanted), candidate))
            low, high = (ratio, high) if left > wanted else (low, ratio)
        return min(tries, key=lambda found: found[0])[1]

    return prune


def _at_ratio(model: nn.Module, image: torch.Tensor, criterion: str, ratio: float, options: dict) -> nn.Module:
    pruned = copy.deepcopy(model)
    pruner = torch_pruning.pruner.MagnitudePruner(
        pruned,
        image,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p={"l1": 1, "l2": 2}[criterion]),
        pruning_ratio=ratio,
        ignored_layers=[[m for m in pruned.modules() if isinstance(m, nn.Linear)][-1]],
        **options,
    )
    pruner.step()
    return pruned
