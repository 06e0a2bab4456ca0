"""Optimizers by name, and their state as tensors by weight name."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .finetune import Finetune

# weight name -> what the optimizer remembers of it ("momentum_buffer", "exp_avg", ...) -> tensor
OptimizerState = dict[str, dict[str, torch.Tensor]]


# Scales of quantizers are not decayed: a smaller one clips more, which is no simpler model.
Groups = list[dict[str, Any]]


def parameter_groups(weights: Iterable[torch.nn.Parameter], scales: Iterable[torch.nn.Parameter]) -> Groups:
    """The parameters as optimizers take them."""
    groups: Groups = [{"params": list(weights)}, {"params": list(scales), "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _sgd(parameters: Groups, options: "Finetune") -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov,
    )


def _adamw(parameters: Groups, options: "Finetune") -> torch.optim.Optimizer:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019."""
    return torch.optim.AdamW(parameters, options.lr, betas=(options.momentum, 0.999), weight_decay=options.weight_decay)


OPTIMIZERS: dict[str, Callable[[Groups, "Finetune"], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}
# Their steps do not depend on the size of the gradient.
NORMALISING = frozenset({"adamw"})


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> OptimizerState:
    """What the optimizer remembers of each parameter, by name. What it has not seen yet is left out."""
    known = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
    return {
        name: {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        for name, state in known.items()
        if state
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], state: Mapping[str, Mapping]
) -> None:
    """Let the optimizer remember what `optimizer_state` gave. Tensors are copied to where their parameter is."""
    for name, values in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: value.detach().clone() if value.ndim == 0 else value.detach().to(parameter.device, copy=True)
            for key, value in values.items()
        }
