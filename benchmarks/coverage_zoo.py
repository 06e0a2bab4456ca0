"""The models of the coverage benchmark: all of torchvision, families of transformers. Random weights only."""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

ZOOS = ("torchvision", "transformers")


@dataclass(frozen=True)
class Entry:
    """A model and how to call it.

    build   the model with random weights
    inputs  the arguments of one call, made for the model; batch 1 where a batch is a dim
    targets for a detector: what its training call takes as second argument
    """

    name: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    targets: Callable[[], list[dict[str, torch.Tensor]]] | None = None


def random_tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def add_noise(model: torch.nn.Module, size: float = 0.02) -> torch.nn.Module:
    """Noise of `size` times a weight's root mean square, or of `size` where that is zero: no layer stays zero.

    A gate of zeros would hide what stands before it.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = float(parameter.square().mean().sqrt()) or 1.0
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size * scale)
    return model


def entries(zoo: str, only: str = "*") -> list[Entry]:
    """The entries of a zoo whose name fits the pattern. A name that is no zoo is looked for in all of them.

    Raises SystemExit with the known names where nothing fits.
    """
    if zoo in ZOOS:
        known = import_module(f"coverage_{zoo}").zoo_entries()
        found = [entry for entry in known if fnmatch.fnmatch(entry.name, only)]
    else:
        known = [entry for name in ZOOS for entry in import_module(f"coverage_{name}").zoo_entries()]
        found = [entry for entry in known if entry.name == zoo]
    if not found:
        raise SystemExit(f"coverage: no model fits '{zoo}' '{only}'; known are: {', '.join(e.name for e in known)}")
    return found
