"""Emitting integer calls: as kernels on packed activations, or where a shape has none, call by call on plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from ....ir.ops import op_name, tensors
from . import integer_calls, integer_sums, plain_integers
from .fuse_integers import IntegerPair, IntegerSum
from .storage import BYTES

if TYPE_CHECKING:
    from ..relax import Emitter


def emit_fused(emitter: Emitter, kernel: IntegerSum | IntegerPair) -> None:
    """Emit a fused kernel, or its calls one by one on plain values where there is none for this shape."""
    if emitter.integers is not None and _emitted(emitter, kernel):
        return
    for node in kernel.nodes():
        emitter.values[node] = plain_integers.emit(emitter, node)


def _emitted(emitter: Emitter, kernel: IntegerSum | IntegerPair) -> bool:
    if isinstance(kernel, IntegerPair):
        return integer_sums.emit_pair(emitter, kernel)
    rule = integer_sums.RULES.get(op_name(kernel.node))
    return rule is not None and rule(emitter, kernel)


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """Emit a single integer call on packed values if there is a way."""
    rule = integer_calls.RULES.get(op_name(node))
    if emitter.integers is None or rule is None or not _handles_bytes(node):
        return False
    return rule(emitter, node)


def _handles_bytes(node: fx.Node) -> bool:
    return any(tensor.dtype in BYTES for n in (node, *node.all_input_nodes) for tensor in tensors(n.meta.get("val")))
