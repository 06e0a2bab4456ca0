"""What each ONNX operator is in PyTorch: a function of the call and its inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from . import layers, shapes
from .call import Call, Numbers, integers


def run(call: Call, values: list[Any]) -> dict[str, Any]:
    """The results by name, given the inputs' values."""
    if call.op not in _ON_NUMBERS:
        values = [value.tensor() if isinstance(value, Numbers) else value for value in values]
    result = OPS[call.op](call, *values)
    results = result if isinstance(result, tuple) else (result,)
    return dict(zip(call.outputs, results, strict=False))


def clip(call: Call, x: Any, low: Any = None, high: Any = None) -> Any:
    ends = [call.get(name) if value is None else value for name, value in (("min", low), ("max", high))]
    if ends == [0.0, 6.0]:
        return functional.relu6(x)
    return functional.relu(x) if ends == [0.0, None] else torch.clamp(x, *ends)


def arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(call: Call, *sides: Any) -> Any:
        if not all(isinstance(side, Numbers) for side in sides):
            return function(*(side.tensor() if isinstance(side, Numbers) else side for side in sides))
        width = max(len(side.values) for side in sides)
        lists = (side.values * (width // len(side.values)) for side in sides)
        return Numbers([function(*pair) for pair in zip(*lists, strict=True)], all(side.is_scalar for side in sides))

    return apply


def divide(left: Any, right: Any) -> Any:
    if isinstance(left, int | torch.SymInt):
        return left // right
    is_whole = isinstance(left, torch.Tensor) and not left.dtype.is_floating_point
    return torch.div(left, right, rounding_mode="trunc") if is_whole else left / right


def unary(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda call, x, *_: function(x)


def folded(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def apply(call: Call, first: Any, *others: Any) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return apply


def maximum(left: Any, right: Any) -> Any:
    return torch.maximum(left, right) if isinstance(right, torch.Tensor) else left.clamp(min=right)


def minimum(left: Any, right: Any) -> Any:
    return torch.minimum(left, right) if isinstance(right, torch.Tensor) else left.clamp(max=right)


def prelu(call: Call, x: Any, slope: Any) -> Any:
    if slope.numel() == 1 or (slope.numel() == slope.shape[0] and slope.ndim == x.ndim - 1):
        return functional.prelu(x, slope.flatten())
    return torch.where(x >= 0, x, x * slope)


def gelu(call: Call, x: Any) -> Any:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


def hard_sigmoid(call: Call, x: Any) -> Any:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


OPS: dict[str, Callable[..., Any]] = {
    "Abs": unary(torch.abs),
    "Add": arithmetic(lambda a, b: a + b),
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_norm,
    "Cast": shapes.cast,
    "Ceil": unary(torch.ceil),
    "Clip": clip,
    "Concat": shapes.concat,
    "Constant": lambda call: call.constant(),
    "ConstantOfShape": shapes.constant_of_shape,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Cos": unary(torch.cos),
    "Div": arithmetic(divide),
    "Dropout": unary(lambda x: x),
    "Einsum": lambda call, *values: torch.einsum(call.get("equation"), *values),
    "Elu": lambda call, x: functional.elu(x, call.get("alpha", 1.0)),
    "Equal": folded(torch.eq),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Expand": shapes.expand,
    "Flatten": shapes.flatten,
    "Floor": unary(torch.floor),
    "Gather": shapes.gather,
    "Gelu": gelu,
    "Gemm": layers.gemm,
    "GlobalAveragePool": unary(lambda x: x.mean(list(range(2, x.ndim)), keepdim=True)),
    "GlobalMaxPool": unary(lambda x: x.amax(list(range(2, x.ndim)), keepdim=True)),
    "Greater": folded(torch.gt),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary(functional.hardswish),
    "Identity": unary(lambda x: x),
    "InstanceNormalization": layers.instance_norm,
    "LayerNormalization": layers.layer_norm,
    "LeakyRelu": lambda call, x: functional.leaky_relu(x, call.get("alpha", 0.01)),
    "Less": folded(torch.lt),
    "Log": unary(torch.log),
    "LogSoftmax": layers.softmax(functional.log_softmax),
    "MatMul": folded(torch.matmul),
    "Max": folded(maximum),
    "MaxPool": layers.max_pool,
    "Min": folded(minimum),
    "Mish": unary(functional.mish),
    "Mul": arithmetic(lambda a, b: a * b),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "PRelu": prelu,
    "Pad": shapes.pad_,
    "Pow": folded(torch.pow),
    "Reciprocal": unary(torch.reciprocal),
    "ReduceL2": layers.reduction(lambda x, dims, keep: torch.linalg.vector_norm(x, 2, dims, keep)),
    "ReduceMax": layers.reduction(torch.amax),
    "ReduceMean": layers.reduction(torch.mean),
    "ReduceMin": layers.reduction(torch.amin),
    "ReduceSum": layers.reduction(torch.sum),
    "Relu": unary(torch.relu),
    "Reshape": shapes.reshape,
    "Resize": shapes.resize,
    "Round": unary(torch.round),
    "Selu": unary(functional.selu),
    "Shape": shapes.shape_,
    "Sigmoid": unary(torch.sigmoid),
    "Sin": unary(torch.sin),
    "Slice": shapes.slice_,
    "Softmax": layers.softmax(functional.softmax),
    "Softplus": unary(functional.softplus),
    "Split": shapes.split,
    "Sqrt": unary(torch.sqrt),
    "Squeeze": shapes.squeeze,
    "Sub": arithmetic(lambda a, b: a - b),
    "Sum": folded(torch.add),
    "Tanh": unary(torch.tanh),
    "Tile": lambda call, x, repeats: x.repeat(integers(repeats)),
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
    "Where": lambda call, condition, a, b: torch.where(condition, a, b),
}
# Those that compute on Numbers; the others get tensors.
_ON_NUMBERS = {
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Expand", "Gather", "Identity", "Mul", "Pad", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Sub",
    "Tile", "Unsqueeze",
}  # fmt: skip
