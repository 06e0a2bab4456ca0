"""rebind: an optimizer goes on with the graph that a pipeline made of the one it trained."""

from collections.abc import Mapping
from typing import Any

import torch

from ..ir.errors import UsageError
from .pipeline import Outcome

WHERE = "rebind"


def rebind(
    optimizer: torch.optim.Optimizer, outcome: Outcome, model: torch.nn.Module | None = None
) -> torch.optim.Optimizer:
    """Let `optimizer` train `outcome.graph.module` from now on. Returns the same optimizer, changed in place.

    outcome  what `Pipeline.run(graph)` gave
    model    whose parameters the optimizer holds: `graph.module` of the graph that went into the pipeline when not
             given, or the nn.Module that the graph was captured from

    Momentum and other state of a parameter's shape keep the entries of the surviving channels; counters stay. Ties and
    parameter groups stay. Parameters that the pipeline removed leave the optimizer; those that it added join the first
    group if they are trainable.

    Raises UsageError, with the optimizer as it was, for a parameter that is not the model's, and for one that a pass
    changed in shape without saying what survived.
    """
    source = outcome.origin.module if model is None else model
    names = {id(p): name for name, p in reversed(list(source.named_parameters(remove_duplicate=False)))}
    new = dict(outcome.graph.module.named_parameters(remove_duplicate=False))
    groups, state, held = [], {}, set()
    for group in optimizer.param_groups:
        kept = []
        for old in group["params"]:
            name = _name_of(old, names)
            parameter = new.get(name)
            if parameter is None or id(parameter) in held:
                continue
            held.add(id(parameter))
            kept.append(parameter)
            if old in optimizer.state:
                state[parameter] = _thinned(optimizer.state[old], name, old, parameter, outcome)
        groups.append(kept)
    before = dict(outcome.origin.module.named_parameters(remove_duplicate=False))
    held |= {id(parameter) for name, parameter in new.items() if name in before}  # left out by the user's choice
    for parameter in new.values():
        if parameter.requires_grad and id(parameter) not in held:
            held.add(id(parameter))
            groups[0].append(parameter)
    for group, kept in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = kept
    optimizer.state.clear()
    optimizer.state.update(state)
    return optimizer


def _name_of(parameter: torch.Tensor, names: Mapping[int, str]) -> str:
    if id(parameter) not in names:
        what = f"the optimizer holds a parameter of shape {list(parameter.shape)} that is not the model's"
        raise UsageError(WHERE, what, "expected the parameters of the graph that was thinned", "pass model=...")
    return names[id(parameter)]


def _thinned(
    state: Mapping[str, Any], name: str, old: torch.Tensor, new: torch.Tensor, outcome: Outcome
) -> dict[str, Any]:
    """The state of one parameter for its surviving channels."""
    thinned = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.shape == old.shape and value.ndim:
            for step in outcome.steps:
                kept = step.result.survivors.get(name)
                value = value if kept is None else kept.take(value)
            if value.shape != new.shape:
                what = f"'{name}' went from {list(old.shape)} to {list(new.shape)}, its state to {list(value.shape)}"
                raise UsageError(WHERE, what, "a pass changed it without saying what survived", "make a new optimizer")
        thinned[key] = value
    return thinned
