"""Linear layers read a matrix: all leading dims of a value are its rows, whose number may be known at run time only."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from tvm import relax

from .views import reshaped

if TYPE_CHECKING:
    from ..relax import Emitter


@dataclass(frozen=True)
class Rows:
    """count: of rows, None where it is symbolic; leading: the dims that they stand for."""

    count: int | None
    leading: list[Any]

    @staticmethod
    def of(result: fx.Node, source: relax.Expr) -> Rows:
        """Of the linear layer that yields `result` and reads `source`."""
        extents = result.meta["val"].shape[:-1]
        is_known = not any(isinstance(extent, torch.SymInt) for extent in extents)
        return Rows(math.prod(map(int, extents)) if is_known else None, list(source.ty.shape)[:-1])

    def flat(self, emitter: Emitter, value: relax.Expr, features: int) -> relax.Expr:
        """[rows, features]"""
        if len(self.leading) == 1:
            return value
        count = math.prod(self.leading) if self.count is None else self.count
        return reshaped(emitter, value, [count, features])

    def unflat(self, emitter: Emitter, value: relax.Expr, features: int) -> relax.Expr:
        """[*leading, features] again."""
        if len(self.leading) == 1:
            return value
        return reshaped(emitter, value, [*self.leading, features])
