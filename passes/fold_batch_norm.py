"""Folding batch norms into the convolutions and linear layers beside them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..ir import rewrite
from ..ir.graph import Graph
from ..ir.ops import CONVS, TRANSPOSED_CONVS, WEIGHTED_PRODUCTS, arguments, is_op, only_user, op_name
from ..ir.shapes import shape
from .base import Context, Pass, Result, Skip
from .layers.by_group import along, by_group


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold a batch norm into the conv, transposed conv or linear before it, else into the one after it.

    A batch norm in eval form is `scale * x + shift` per channel, and a product is linear in its channels, so that
    scale and shift move into its weight and bias (Jacob et al. 2018, arXiv 1712.05877, section 3.2). Computed in
    float64, then cast to the weight's dtype.

    before:  %y = conv2d(%x, w, b);  %z = batch_norm(%y, g, h, m, v)
    after:   %z = conv2d(%x, w', b')

    before:  %y = batch_norm(%x, g, h, m, v);  %z = conv2d(%y, w, b)
    after:   %z = conv2d(%x, w', b')

    skips:   the batch norm is in training mode, or has no running statistics
             the conv has other users; its weight is shared, or is computed
             the batch norm runs over another dim than the product's channels
             the batch norm comes first, its shift is not zero, and the conv's border would not see it (padding)
             nothing that it could be folded into stands beside it

    `no-batch-norm` is withheld where a batch norm is left.
    """

    name: ClassVar[str] = "fold-batch-norm"
    provides: ClassVar[frozenset[str]] = frozenset({"no-batch-norm"})
    # Scales are of the weights before folding.
    refuses: ClassVar[frozenset[str]] = frozenset({"fake-quant", "integers"})

    def run(self, graph: Graph, ctx: Context) -> Result:
        changed, skipped = 0, []
        norms = [node for node in graph.nodes if "batch_norm" in op_name(node)]
        for norm in norms:
            fold = _find_fold(graph, norm)
            if isinstance(fold, str):
                skipped.append(Skip.at(norm, fold))
            elif ctx.fuel.take():
                _apply(graph, fold)
                changed += 1
        (rewrite.finish if changed else rewrite.tidy)(graph)  # a graph fresh from capture may hold unread weights
        withheld = self.provides if changed < len(norms) else frozenset()
        return Result(changed, tuple(skipped), withheld=withheld)


@dataclass(frozen=True)
class _Fold:
    """One site: the product's new weight and bias, and the value that stands for the batch norm's afterwards."""

    norm: fx.Node
    product: fx.Node
    weight: torch.Tensor
    bias: torch.Tensor
    result: fx.Node


def _find_fold(graph: Graph, norm: fx.Node) -> _Fold | str:
    """The fold at this batch norm, or why there is none."""
    if reason := _why_not_affine(norm):
        return reason
    source, reader = arguments(norm).input, only_user(norm)
    reasons = []
    if is_op(source, *WEIGHTED_PRODUCTS):
        reasons.append(_why_not_into(graph, source, source, norm) or _fold_into_source(graph, norm, source))
    if reader is not None and is_op(reader, *WEIGHTED_PRODUCTS) and arguments(reader).input is norm:
        reasons.append(_why_not_into(graph, reader, norm, reader) or _fold_into_reader(graph, norm, reader))
    folds = [found for found in reasons if isinstance(found, _Fold)]
    if folds:
        return folds[0]
    return str(reasons[0]) if reasons else "no conv or linear stands directly beside it"


def _why_not_affine(norm: fx.Node) -> str | None:
    if op_name(norm) != "batch_norm":
        return "it is in decomposed form; capture the model before decomposition"
    call = arguments(norm)
    if call.running_mean is None or call.running_var is None:
        return "it has no running statistics"
    if call.training:
        return "it is in training mode"
    own = (call.weight, call.bias, call.running_mean, call.running_var)
    if not all(value is None or value.op == "get_attr" for value in own):
        return "its scale or statistics are computed"
    return None


def _why_not_into(graph: Graph, product: fx.Node, first: fx.Node, second: fx.Node) -> str | None:
    """Why the product cannot take the norm. `first` is whichever of the two runs first; `second` alone may read it."""
    if only_user(first) is not second:
        return f"'{first.name}' has other users"
    call = arguments(product)
    for weight in filter(None, (call.weight, call.bias)):
        if weight.op != "get_attr":
            return f"the weight of '{product.name}' is computed"
        others = [reader.name for reader in graph.weight_readers(str(weight.target)) if reader is not product]
        if others:
            return f"its weight '{weight.target}' is shared with '{others[0]}'"
    rank = len(shape(first))
    if rank != (2 if is_op(product, "linear") else len(shape(call.weight))):
        return f"it runs over dim 1 of {rank}, which are not the channels of '{product.name}'"
    return None


def _fold_into_source(graph: Graph, norm: fx.Node, product: fx.Node) -> _Fold:
    """norm(W x + b) = (scale W) x + (scale b + shift)"""
    scale, shift = _scale_and_shift(graph, norm)
    weight, bias = _weight_and_bias(graph, product, channels=len(scale))
    grouped, outputs, _ = by_group(product, weight)
    weight = (grouped * along(scale, grouped, outputs)).reshape(weight.shape)
    return _Fold(norm, product, weight, bias * scale + shift, product)


def _fold_into_reader(graph: Graph, norm: fx.Node, product: fx.Node) -> _Fold | str:
    """W (scale x + shift) + b = (W scale) x + (W shift + b)"""
    scale, shift = _scale_and_shift(graph, norm)
    if bool(shift.any()) and (reason := _why_border_differs(product)):
        return reason
    weight = graph.weight(arguments(product).weight).detach().double()
    grouped, outputs, inputs = by_group(product, weight)
    channels = grouped.shape[0] * grouped.shape[outputs]
    _, bias = _weight_and_bias(graph, product, channels)
    constant = (grouped * along(shift, grouped, inputs)).sum(dim=(inputs, 3)).reshape(-1)
    weight = (grouped * along(scale, grouped, inputs)).reshape(weight.shape)
    return _Fold(norm, product, weight, bias + constant, arguments(norm).input)


def _why_border_differs(product: fx.Node) -> str | None:
    """Padding puts zeros after the norm; a border pixel of a transposed conv meets only some taps."""
    if is_op(product, *TRANSPOSED_CONVS):
        return f"its shift is not zero and '{product.name}' is a transposed conv, whose border would differ"
    if is_op(product, *CONVS):
        padding = arguments(product).padding
        if padding != "valid" and (isinstance(padding, str) or any(padding)):
            return f"its shift is not zero and '{product.name}' pads"
    return None


def _scale_and_shift(graph: Graph, norm: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    call = arguments(norm)
    mean, variance = (graph.weight(n).detach().double() for n in (call.running_mean, call.running_var))
    scale = torch.rsqrt(variance + call.eps)
    if call.weight is not None:
        scale = scale * graph.weight(call.weight).detach().double()
    shift = -mean * scale
    if call.bias is not None:
        shift = shift + graph.weight(call.bias).detach().double()
    return scale, shift


def _weight_and_bias(graph: Graph, product: fx.Node, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    call = arguments(product)
    weight = graph.weight(call.weight).detach().double()
    if call.bias is None:
        return weight, torch.zeros(channels, dtype=torch.float64, device=weight.device)
    return weight, graph.weight(call.bias).detach().double()


def _apply(graph: Graph, fold: _Fold) -> None:
    call, norm_call = arguments(fold.product), arguments(fold.norm)
    old = graph.weight(call.weight)
    rewrite.set_weight(graph, call.weight.target, fold.weight.to(old.dtype))
    bias = fold.bias.to(old.dtype)
    if call.bias is not None:
        rewrite.set_weight(graph, call.bias.target, bias)
    else:
        learned = graph.weight(norm_call.bias) if norm_call.bias is not None else old
        module, dot, _ = call.weight.target.rpartition(".")
        parameter = torch.nn.Parameter(bias, learned.requires_grad)
        node = rewrite.add_weight(graph, f"{module}{dot}bias", parameter, before=fold.product)
        rewrite.set_argument(graph, fold.product, "bias", node)
    rewrite.replace(graph, fold.norm, fold.result)
