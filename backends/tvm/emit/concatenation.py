"""Concatenations along channels: kernels that take parts read them where they lie; for all others they are copied."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import fx
from tvm import relax

from ....ir.ops import arguments, op_name
from ..arithmetic import Arithmetic
from ..kernels import Concat, in_parts

if TYPE_CHECKING:
    from ..relax import Emitter

# Calls whose kernels may read parts: a padding is part of the convolution behind it.
_READERS = ("conv2d", "conv_int32", "pad", "constant_pad_nd")


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """Note the parts, where every one fills its lanes and some are packed; a copy is emitted when it is needed."""
    call, how = arguments(node), emitter.arithmetic_of(node)
    if node.meta["val"].dtype not in emitter.floats and emitter.integers is not None:
        how = emitter.integers
    found = [emitter.packed_extents(n) for n in call.tensors]
    parts = [part for part in found if part is not None and part[3] % how.lanes == 0]
    if call.dim % 4 != 1 or len(parts) < len(found):
        return False
    if not any(emitter.values.is_packed(n) for n in call.tensors):
        return False
    batch, height, width, _ = parts[0]
    spec = Concat(batch, height, width, tuple(part[3] for part in parts))
    emitter.values.set_parts(node, call.tensors, partial(_copy, emitter, node, spec, how))
    return True


def read(emitter: Emitter, source: fx.Node, spec: Any, arithmetic: Arithmetic) -> tuple[Any, list[relax.Expr]]:
    """A product's spec and its input: the parts of a concatenation where all who read it take them, else one map."""
    parts = emitter.values.parts(source)
    if parts and all(op_name(user) in _READERS for user in source.users):
        channels = tuple(int(part.meta["val"].shape[1]) for part in parts)
        found = in_parts(spec, arithmetic, channels)
        if found is not None:
            return found, [emitter.values.packed(part) for part in parts]
    return spec, [emitter.values.packed(source)]


def _copy(emitter: Emitter, node: fx.Node, spec: Concat, how: Arithmetic) -> relax.Expr:
    inputs = [emitter.values.packed(part) for part in arguments(node).tensors]
    return emitter.kernel(node, spec, inputs, [], how)
