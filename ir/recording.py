"""One run of a model, with the arguments that each of its modules was called with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .errors import CaptureError, first_line


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def leaves(self) -> list[Any]:
        """Every value in the arguments, in order. An object that is no container of PyTorch's is one leaf."""
        return pytree.tree_leaves((self.args, self.kwargs))

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]


def record(model: torch.nn.Module, example: Call) -> Mapping[torch.nn.Module, list[Call]]:
    """Run the model in eval form, without gradients, and return all calls of every module that was called.

    The model's mode and PyTorch's random state are as before afterwards. Raises CaptureError where the run fails.
    """
    calls: dict[torch.nn.Module, list[Call]] = {}

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, []).append(Call(args, kwargs))

    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modes]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*example.args, **example.kwargs)
    except Exception as error:
        what = f"the model does not run on the example: {type(error).__name__}: {first_line(error)}"
        raise CaptureError("capture_parts", what, "give inputs that the model takes") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return calls


def differing_dims(calls: list[Call]) -> dict[int, set[int]]:
    """Position of a tensor among the leaves -> its dims whose extent is not the same in every call.

    Raises CaptureError for calls whose arguments differ in more than extents.
    """
    first = calls[0]
    structure = pytree.tree_structure((first.args, first.kwargs))
    found: dict[int, set[int]] = {}
    for other in calls[1:]:
        if pytree.tree_structure((other.args, other.kwargs)) != structure:
            raise CaptureError("capture", "its calls are nested in different ways")
        for position, (one, two) in enumerate(zip(first.leaves, other.leaves, strict=True)):
            if not isinstance(one, torch.Tensor):
                continue
            if not isinstance(two, torch.Tensor) or one.ndim != two.ndim or one.dtype != two.dtype:
                raise CaptureError("capture", "its calls take tensors of different dtype or number of dims")
            differing = {d for d in range(one.ndim) if one.shape[d] != two.shape[d]}
            found[position] = found.get(position, set()) | differing
    return found
