"""Quantizing and tables on plain values: tokens, whose rows no conv reads."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx
from tvm import relax

from ....ir.ops import arguments, is_op, op_name
from ..kernels import FlatLookup, FlatQuantize, constants
from .integer_numbers import grid_of
from .rows import Rows
from .transpositions import permuted

if TYPE_CHECKING:
    from ..relax import Emitter

_MOVES = ("transpose", "permute", "view", "reshape", "flatten", "matmul_int32")


def is_read_plain(node: fx.Node) -> bool:
    """True for an image-like value that nobody reads as an image: heads of attention."""
    return all(is_op(user, *_MOVES) for user in node.users)


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """Emit a call that no kernel of packed values took; False leaves it to TVM."""
    rule, value = _RULES.get(op_name(node)), node.meta.get("val")
    if rule is None or emitter.integers is None or not isinstance(value, torch.Tensor) or value.ndim < 2:
        return False
    return not isinstance(value.shape[-1], torch.SymInt) and rule(emitter, node)


def _quantize(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    if call.x.meta["val"].dtype != torch.float32:
        return False
    return _keep(emitter, node, call.x, FlatQuantize, constants(grid_of(emitter, node), scale=call.scale))


def _look_up(emitter: Emitter, node: fx.Node) -> bool:
    call = arguments(node)
    return _keep(emitter, node, call.q, FlatLookup, emitter.storage.table(emitter.graph.weight(call.table)))


def _keep(emitter: Emitter, node: fx.Node, read: fx.Node, spec: Callable[..., Any], numbers: np.ndarray) -> bool:
    """What is only transposed is read as it lies, and transposed behind the call, where it may find its inverse."""
    source, width = emitter.values[read], int(node.meta["val"].shape[-1])
    found = permuted(emitter, source)
    axes = list(found[1]) if found and found[1][-1] == len(found[1]) - 1 else None
    source = found[0] if found and axes else source
    rows = Rows.of(node, source)
    flat = rows.flat(emitter, source, width)
    result = emitter.kernel(node, spec(rows.count, width), [flat], [numbers], emitter.integers)
    value = rows.unflat(emitter, result, width)
    emitter.values[node] = emitter.builder.emit(relax.op.permute_dims(value, axes)) if axes else value
    return True


_RULES: dict[str, Callable[[Emitter, fx.Node], bool]] = {"quantize": _quantize, "lookup_int8": _look_up}
