"""Linear layers with packed weights: what their kernels read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from ....ir.integers.packed_weights import WEIGHT_ONLY, dequantized, steps
from ....ir.ops import arguments, is_op
from ..arithmetic import StoredWeights, with_stored_weights

if TYPE_CHECKING:
    from ..relax import Emitter

# How a weight of a dtype lies in a kernel's memory.
_KINDS = {torch.int8: "int8", torch.uint8: "int4", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def is_packed(node: fx.Node) -> bool:
    """True for weights that only such layers read: they pack them, and nobody needs them as they are."""
    return bool(node.users) and all(is_op(user, WEIGHT_ONLY) and arguments(user).weight is node for user in node.users)


def arithmetic(emitter: Emitter, node: fx.Node) -> StoredWeights | None:
    """How the target multiplies by this call's weights; None for plain weights and where it cannot unpack them."""
    if not is_op(node, WEIGHT_ONLY):
        return None
    return with_stored_weights(emitter.arithmetic, _KINDS[arguments(node).weight.meta["val"].dtype])


def scales(node: fx.Node) -> int:
    """How many each output has."""
    scale = arguments(node).scale
    return 0 if scale is None else int(scale.meta["val"].shape[1])


def arrays(emitter: Emitter, node: fx.Node) -> list[np.ndarray | None]:
    """Weight, scale and bias as `WeightOnlyDense` packs them."""
    call = arguments(node)
    weight = steps(emitter.graph.weight(call.weight).detach(), int(call.input.meta["val"].shape[-1]))
    raw = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
    rest = [None if given is None else emitter.array(given) for given in (call.scale, call.bias)]
    return [raw.numpy(), *rest]


def floats(emitter: Emitter, node: fx.Node) -> list[np.ndarray | None]:
    """Weight and bias in float32, as large as they were."""
    call = arguments(node)
    scale = None if call.scale is None else emitter.graph.weight(call.scale).detach()
    weight = dequantized(emitter.graph.weight(call.weight).detach(), scale, int(call.input.meta["val"].shape[-1]))
    return [weight.numpy(), None if call.bias is None else emitter.array(call.bias)]
