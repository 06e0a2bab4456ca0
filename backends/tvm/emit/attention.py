"""Attention as a kernel of our own, which reads in place what is only transposed before it."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx
from tvm import relax

from ....ir.ops import arguments, is_op
from ..kernels import Attention, Tokens, round_up
from .transpositions import SWAPPED_HEADS, without_swapped_heads

if TYPE_CHECKING:
    from ..relax import Emitter


def emit(emitter: Emitter, node: fx.Node) -> bool:
    """Emit the call if the kernel takes it; False leaves it to TVM."""
    if not is_op(node, "scaled_dot_product_attention"):
        return False
    call = arguments(node)
    query, key, value = (_fixed(operand) for operand in (call.query, call.key, call.value))
    if query is None or key is None or value is None or call.dropout_p or not _mask_fits(call):
        return False
    if query[0] % key[0] or key[0] != value[0] or (query[0] != key[0] and not call.enable_gqa):
        return False
    reads = [without_swapped_heads(emitter, emitter.values[n]) for n in (call.query, call.key, call.value)]
    tokens = [Tokens(*extents, first) for extents, (_, first) in zip((query, key, value), reads, strict=True)]
    tokens.append(Tokens(query[0], query[1], value[2], tokens_first=True))
    scale = float(call.scale) if call.scale is not None else query[2] ** -0.5
    spec = Attention(emitter.batch(node), *tokens, scale=scale, mask=_mask_extents(call))
    result = emitter.kernel(node, spec, [*(read for read, _ in reads), *_masks(emitter, call)], [])
    emitter.values[node] = emitter.builder.emit(relax.op.permute_dims(result, list(SWAPPED_HEADS)))
    return True


def _fixed(node: fx.Node) -> tuple[int, int, int] | None:
    """(heads, tokens, width) of a float32 value [batch, heads, tokens, width], all known; None for others."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.dtype != torch.float32:
        return None
    if any(isinstance(extent, torch.SymInt) for extent in value.shape[1:]) or node.op == "get_attr":
        return None
    heads, tokens, width = map(int, value.shape[1:])
    return heads, tokens, width


def _mask_fits(call: Any) -> bool:
    """Whether the kernel reads the call's mask: flags or numbers, broadcast over anything but keys."""
    if call.attn_mask is None:
        return True
    mask, query, keys = call.attn_mask.meta["val"], call.query.meta["val"].shape, call.key.meta["val"].shape[2]
    if call.is_causal or mask.ndim > 4 or mask.dtype not in (torch.float32, torch.bool) or mask.shape[-1] != keys:
        return False
    leading = [1] * (4 - mask.ndim) + list(mask.shape[:-1])
    return all(str(own) in ("1", str(whole)) for own, whole in zip(leading, query[:3], strict=True))


def _mask_extents(call: Any) -> tuple[int | None, int, int] | None:
    """(batch, heads, queries) of what is added to the scores, None where nothing is."""
    if call.is_causal:
        return 1, 1, int(call.query.meta["val"].shape[2])
    if call.attn_mask is None:
        return None
    shape = call.attn_mask.meta["val"].shape
    first, heads, queries = [1] * (4 - len(shape)) + list(shape[:-1])
    return None if isinstance(first, torch.SymInt) else int(first), int(heads), int(queries)


def _masks(emitter: Emitter, call: Any) -> list[relax.Expr]:
    """What is added to the scores, if anything is: [batch, heads, queries, keys], rows padded to whole vectors."""
    queries, keys = (int(n.meta["val"].shape[2]) for n in (call.query, call.key))
    behind = round_up(keys, emitter.arithmetic.lanes) - keys
    if call.is_causal:
        causal = np.where(np.tri(queries, keys, dtype=bool), np.float32(0), np.float32("-inf"))
        padded = np.pad(causal, ((0, 0), (0, behind)), constant_values=-np.inf)
        return [emitter.constant(padded[None, None])]
    if call.attn_mask is None:
        return []
    value = emitter.values[call.attn_mask]
    while len(value.ty.shape) < 4:
        value = emitter.builder.emit(relax.op.expand_dims(value, [0]))
    if call.attn_mask.meta["val"].dtype == torch.bool:
        nothing, all_of_it = relax.const(np.float32("-inf")), relax.const(np.float32(0))
        value = emitter.builder.emit(relax.op.where(value, all_of_it, nothing))
    if behind:
        value = emitter.builder.emit(relax.op.nn.pad(value, [0] * 7 + [behind], pad_value=-math.inf))
    return [value]
