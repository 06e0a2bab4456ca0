"""The rule table: op name -> how its atoms relate, and how its shape arguments are recounted after a cut.

A rule is `f(index, node, call) -> dims`: it reads `index[input]`, ties, freezes or relates atoms, and returns the dims
of the output (a list of dims; a list of those for an op with several outputs). It raises NoRule for a form of the
call that it does not cover, which fences the call.

A refit is `f(cut, node, call)`: it writes the surviving extents into the arguments of the node. Only ops that carry
extents, group counts or offsets as arguments need one.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .....ir.ops import has_schema, op_name
from ..constraints import Constraints
from ..relation import Dims

if TYPE_CHECKING:
    from ...cut import Cut

Call = SimpleNamespace
Rule = Callable[[Constraints, fx.Node, Call], Dims | list[Dims]]
Refit = Callable[["Cut", fx.Node, Call], None]

RULES: dict[str, Rule] = {}
REFITS: dict[str, Refit] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the named ops (overloads and in-place forms included)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def refit(*names: str) -> Callable[[Refit], Refit]:
    """Register the recounting of shape arguments for the named ops."""

    def register(function: Refit) -> Refit:
        REFITS.update(dict.fromkeys(names, function))
        return function

    return register


def find_rule(node: fx.Node) -> Rule | None:
    """The rule of an ATen call; every op that PyTorch tags as pointwise has the elementwise one."""
    tags: Any = getattr(node.target, "tags", ())
    return RULES.get(op_name(node)) or (RULES["pointwise"] if torch.Tag.pointwise in tags else None)


def find_refit(node: fx.Node) -> Refit | None:
    return REFITS.get(op_name(node)) if has_schema(node) else None


def replace_dim(dims: Dims, position: int, *new: Any) -> Dims:
    """The dims with the one at `position` replaced by none, one or several others."""
    return [*dims[:position], *new, *dims[position + 1 :]]
