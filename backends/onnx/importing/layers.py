"""Products, norms, pooling and reductions."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from .call import Call, given


def pads_of(call: Call, rank: int) -> list[int]:
    if call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise call.refuse(f"auto_pad={call.get('auto_pad')}")
    return list(call.get("pads", [0] * (2 * rank)))


def padded(x: torch.Tensor, pads: list[int], value: float = 0.0) -> tuple[torch.Tensor, list[int]]:
    """(x, symmetric padding): uneven sides are added to x, as PyTorch's ops have one number for both."""
    rank = len(pads) // 2
    first, last = pads[:rank], pads[rank:]
    if first == last:
        return x, first
    sides = [side for pair in zip(reversed(first), reversed(last), strict=True) for side in pair]
    return functional.pad(x, sides, value=value), [0] * rank


def conv(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    rank = weight.ndim - 2
    x, padding = padded(x, pads_of(call, rank))
    conv = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    return conv(x, weight, bias, strides, padding, dilations, call.get("group", 1))


def conv_transpose(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    rank = weight.ndim - 2
    pads = pads_of(call, rank)
    if pads[:rank] != pads[rank:] or call.get("output_shape"):
        raise call.refuse("uneven padding or an output_shape")
    conv = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[rank]
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    beyond = call.get("output_padding", [0] * rank)
    return conv(x, weight, bias, strides, pads[:rank], beyond, call.get("group", 1), dilations)


def gemm(call: Call, a: Any, b: Any, c: Any = None) -> Any:
    a = a.transpose(0, 1) if call.get("transA") else a
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if alpha == 1.0 and (c is None or (beta == 1.0 and c.ndim == 1)):
        return functional.linear(a, b if call.get("transB") else b.transpose(0, 1), c)
    product = alpha * (a @ (b.transpose(0, 1) if call.get("transB") else b))
    return product if c is None else product + beta * c


# ---------------------------------------------------------------- norms, pooling, reductions


def batch_norm(call: Call, x: Any, weight: Any, bias: Any, mean: Any, variance: Any) -> Any:
    return functional.batch_norm(x, mean, variance, weight, bias, eps=call.get("epsilon", 1e-5))


def layer_norm(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    shape = x.shape[call.get("axis", -1) % x.ndim :]
    return functional.layer_norm(x, shape, weight, bias, call.get("epsilon", 1e-5))


def instance_norm(call: Call, x: Any, weight: Any, bias: Any) -> Any:
    return functional.instance_norm(x, weight=weight, bias=bias, eps=call.get("epsilon", 1e-5))


def max_pool(call: Call, x: Any) -> Any:
    rank = x.ndim - 2
    x, padding = padded(x, pads_of(call, rank), float("-inf"))
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[rank]
    options = call.get("strides", [1] * rank), padding, call.get("dilations", [1] * rank), bool(call.get("ceil_mode"))
    return pool(x, call.get("kernel_shape"), *options)


def average_pool(call: Call, x: Any) -> Any:
    rank = x.ndim - 2
    pads, counted = pads_of(call, rank), bool(call.get("count_include_pad"))
    if pads[:rank] != pads[rank:] and not counted:
        raise call.refuse("uneven padding that does not count")
    x, padding = padded(x, pads)
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[rank]
    strides = call.get("strides", [1] * rank)
    return pool(x, call.get("kernel_shape"), strides, padding, bool(call.get("ceil_mode")), counted)


def reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(call: Call, x: Any, axes: Any = None) -> Any:
        dims = given(call, "axes", axes)
        if not dims and call.get("noop_with_empty_axes"):
            return x
        return function(x, dims or list(range(x.ndim)), bool(call.get("keepdims", 1)))

    return reduce


def softmax(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(call: Call, x: Any) -> Any:
        if call.opset >= 13:
            return function(x, call.get("axis", -1))
        axis = call.get("axis", 1) % x.ndim  # of older opsets: over all dims from this one on
        return function(x.flatten(axis), axis).reshape(x.shape)

    return apply
