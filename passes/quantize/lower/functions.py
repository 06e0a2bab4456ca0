"""Functions of one value, element by element: a table of 256 entries, or the ends of a clip."""

import math
from typing import Any

import torch
from torch import fx

from ....ir.ops import is_op, only_user, op_name
from ..rules import CLIPS, ELEMENTWISE, Role, Roles
from .quantized import Grid

_WITH_NUMBERS = frozenset({"add", "sub", "mul"})  # x * 2, and also x + x

Chain = tuple[fx.Node, ...]


def is_function(node: fx.Node, roles: Roles) -> bool:
    """True for a call that maps each element of one tensor, numbers being its only other operands."""
    if len(node.all_input_nodes) != 1:
        return False
    role = Role.UNARY if op_name(node) in ELEMENTWISE else Role.ARITHMETIC
    return op_name(node) in ELEMENTWISE | _WITH_NUMBERS and roles[node] is role


def behind(value: fx.Node, roles: Roles) -> tuple[fx.Node, Chain]:
    """(head, the functions between it and `value`, in order): `value` is head, seen through functions of it alone."""
    chain: list[fx.Node] = []
    head = value
    while is_function(head, roles) and (not chain or only_user(head) is not None):
        chain.append(head)
        head = head.all_input_nodes[0]
    return head, tuple(reversed(chain))


def clip_ends(chain: Chain) -> tuple[float, float] | None:
    """The least and greatest value that a chain of clips lets through; None where it does more than clip."""
    if not all(is_op(node, *CLIPS) for node in chain):
        return None
    ends = apply(chain, torch.tensor([-math.inf, math.inf], dtype=torch.float64))
    return float(ends[0]), float(ends[1])


def table(chain: Chain, source: Grid, target: Grid) -> torch.Tensor:
    """[256] of the target's dtype: the chain's value, quantized, for each integer of the source. In float64."""
    return target.quantize(apply(chain, source.reals())).to(target.dtype)


def apply(chain: Chain, values: torch.Tensor) -> torch.Tensor:
    for node in chain:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda _, values=values: values)
        values = _call(node.target, args, kwargs)
    return values


def _call(target: Any, args: Any, kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return target(*args, **kwargs)
