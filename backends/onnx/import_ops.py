"""What each ONNX operator is in PyTorch: a function of its inputs and attributes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from ...ir.errors import CaptureError


@dataclass(frozen=True)
class Numbers:
    """A tensor of integers that says how to compute: a shape, axes, an index. Extents in it may be symbolic.

    It is never a torch.Tensor, whose elements torch.export would not know.
    """

    values: list[Any]
    is_scalar: bool = False

    def tensor(self) -> torch.Tensor:
        return torch.tensor(self.values[0] if self.is_scalar else self.values)


@dataclass(frozen=True)
class Call:
    """One node: its operator, the names of its values, and its attributes as Python values."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    opset: int

    @staticmethod
    def of(node: onnx.NodeProto, opset: int) -> "Call":
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        plain = {name: v.decode() if isinstance(v, bytes) else v for name, v in attributes.items()}
        return Call(node.op_type, list(node.input), list(node.output), plain, opset)

    def run(self, values: list[Any]) -> dict[str, Any]:
        """The results by name, given the inputs' values."""
        if self.op not in _ON_NUMBERS:
            values = [value.tensor() if isinstance(value, Numbers) else value for value in values]
        result = OPS[self.op](self, *values)
        results = result if isinstance(result, tuple) else (result,)
        return dict(zip(self.outputs, results, strict=False))

    def constant(self) -> torch.Tensor:
        ((name, value),) = self.attributes.items()
        if name == "value":
            return torch.from_numpy(numpy_helper.to_array(value).copy())
        return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def refuse(self, what: str) -> CaptureError:
        return CaptureError(f"ONNX operator '{self.op}'", f"{what} has no form in PyTorch here")


def _ints(value: Any) -> list[Any]:
    """A shape, axes or the like as a list."""
    return value.values if isinstance(value, Numbers) else value.reshape(-1).tolist()


def _given(call: Call, name: str, value: Any, default: Any = None) -> Any:
    """What older opsets hold as an attribute and newer ones as an input: a list, or the default."""
    if value is not None:
        return _ints(value)
    return call.get(name, default)


# ---------------------------------------------------------------- products


def _padding(call: Call, rank: int) -> list[int]:
    if call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise call.refuse(f"auto_pad={call.get('auto_pad')}")
    return list(call.get("pads", [0] * (2 * rank)))


def _padded(x: torch.Tensor, pads: list[int], value: float = 0.0) -> tuple[torch.Tensor, list[int]]:
    """(x, symmetric padding): uneven sides are added to x, as PyTorch's ops have one number for both."""
    rank = len(pads) // 2
    first, last = pads[:rank], pads[rank:]
    if first == last:
        return x, first
    sides = [side for pair in zip(reversed(first), reversed(last), strict=True) for side in pair]
    return functional.pad(x, sides, value=value), [0] * rank


def _conv(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    rank = weight.ndim - 2
    x, padding = _padded(x, _padding(call, rank))
    conv = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    return conv(x, weight, bias, strides, padding, dilations, call.get("group", 1))


def _conv_transpose(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    rank = weight.ndim - 2
    pads = _padding(call, rank)
    if pads[:rank] != pads[rank:] or call.get("output_shape"):
        raise call.refuse("uneven padding or an output_shape")
    conv = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[rank]
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    beyond = call.get("output_padding", [0] * rank)
    return conv(x, weight, bias, strides, pads[:rank], beyond, call.get("group", 1), dilations)


def _gemm(call: Call, a: Any, b: Any, c: Any = None) -> Any:
    a = a.transpose(0, 1) if call.get("transA") else a
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if alpha == 1.0 and (c is None or (beta == 1.0 and c.ndim == 1)):
        return functional.linear(a, b if call.get("transB") else b.transpose(0, 1), c)
    product = alpha * (a @ (b.transpose(0, 1) if call.get("transB") else b))
    return product if c is None else product + beta * c


# ---------------------------------------------------------------- norms, pooling, reductions


def _batch_norm(call: Call, x: Any, weight: Any, bias: Any, mean: Any, variance: Any) -> Any:
    return functional.batch_norm(x, mean, variance, weight, bias, eps=call.get("epsilon", 1e-5))


def _layer_norm(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    shape = x.shape[call.get("axis", -1) % x.ndim :]
    return functional.layer_norm(x, shape, weight, bias, call.get("epsilon", 1e-5))


def _instance_norm(call: Call, x: Any, weight: Any, bias: Any) -> Any:
    return functional.instance_norm(x, weight=weight, bias=bias, eps=call.get("epsilon", 1e-5))


def _max_pool(call: Call, x: Any) -> Any:
    rank = x.ndim - 2
    x, padding = _padded(x, _padding(call, rank), float("-inf"))
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[rank]
    options = call.get("strides", [1] * rank), padding, call.get("dilations", [1] * rank), bool(call.get("ceil_mode"))
    return pool(x, call.get("kernel_shape"), *options)


def _average_pool(call: Call, x: Any) -> Any:
    rank = x.ndim - 2
    pads, counted = _padding(call, rank), bool(call.get("count_include_pad"))
    if pads[:rank] != pads[rank:] and not counted:
        raise call.refuse("uneven padding that does not count")
    x, padding = _padded(x, pads)
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[rank]
    strides = call.get("strides", [1] * rank)
    return pool(x, call.get("kernel_shape"), strides, padding, bool(call.get("ceil_mode")), counted)


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(call: Call, x: Any, axes: Any = None) -> Any:
        dims = _given(call, "axes", axes)
        if not dims and call.get("noop_with_empty_axes"):
            return x
        return function(x, dims or list(range(x.ndim)), bool(call.get("keepdims", 1)))

    return reduce


def _softmax(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(call: Call, x: Any) -> Any:
        if call.opset >= 13:
            return function(x, call.get("axis", -1))
        axis = call.get("axis", 1) % x.ndim  # of older opsets: over all dims from this one on
        return function(x.flatten(axis), axis).reshape(x.shape)

    return apply


# ---------------------------------------------------------------- shapes


def _shape(call: Call, x: Any) -> Any:
    return Numbers(list(x.shape)[call.get("start", 0) : call.get("end")])


def _reshape(call: Call, x: Any, shape: Any) -> Any:
    if isinstance(x, Numbers):
        return Numbers(x.values, is_scalar=not _ints(shape))
    wanted = _ints(shape)
    if not call.get("allowzero"):
        wanted = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(call: Call, x: Any) -> Any:
    axis = call.get("axis", 1) % (x.ndim + 1)
    if axis == 1:
        return x.flatten(1)
    return x.reshape([1, -1] if axis == 0 else [x[(slice(None),) * axis + (0,) * (x.ndim - axis)].numel(), -1])


def _transpose(call: Call, x: Any) -> Any:
    return x.permute(call.get("perm", list(reversed(range(x.ndim)))))


def _squeeze(call: Call, x: Any, axes: Any = None) -> Any:
    if isinstance(x, Numbers):
        return Numbers(x.values, is_scalar=True)
    dims = _given(call, "axes", axes)
    return x.squeeze() if dims is None else x.squeeze(dims)


def _unsqueeze(call: Call, x: Any, axes: Any = None) -> Any:
    if isinstance(x, Numbers):
        return Numbers(x.values)
    dims = _given(call, "axes", axes)
    for dim in sorted(d % (x.ndim + len(dims)) for d in dims):
        x = x.unsqueeze(dim)
    return x


def _concat(call: Call, *values: Any) -> Any:
    if all(isinstance(value, Numbers) for value in values):
        return Numbers([extent for value in values for extent in value.values])
    return torch.cat(values, call.get("axis"))


def _gather(call: Call, x: Any, indices: Any) -> Any:
    axis, is_scalar = call.get("axis", 0), isinstance(indices, Numbers) and indices.is_scalar
    if isinstance(x, Numbers):
        return Numbers([x.values[i] for i in _ints(indices)], is_scalar)
    if is_scalar:
        return x.select(axis, indices.values[0])
    indices = indices.tensor() if isinstance(indices, Numbers) else indices
    if x.ndim == 2 and axis == 0 and x.dtype.is_floating_point:
        return functional.embedding(indices.long(), x)
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1)
    return x.index_select(axis, flat).unflatten(axis % x.ndim, list(indices.shape))


def _slice(call: Call, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    first, last = _given(call, "starts", starts), _given(call, "ends", ends)
    dims = _given(call, "axes", axes, list(range(len(first))))
    strides = [1] * len(first) if steps is None else _ints(steps)
    for dim, start, end, step in zip(dims, first, last, strides, strict=True):
        if isinstance(x, Numbers):
            x = Numbers(x.values[start:end:step])
        elif step > 0:
            x = x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]
        else:
            x = x.index_select(dim, torch.tensor(list(range(x.shape[dim]))[start:end:step]))
    return x


def _split(call: Call, x: Any, sizes: Any = None) -> Any:
    axis, wanted = call.get("axis", 0), _given(call, "split", sizes)
    count = call.get("num_outputs", len(call.outputs))
    return tuple(x.split(wanted if wanted else -(-x.shape[axis] // count), axis))


def _expand(call: Call, x: Any, shape: Any) -> Any:
    return x.expand(torch.broadcast_shapes(x.shape, _ints(shape)))


def _pad(call: Call, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    sides = _given(call, "pads", pads)
    dims = range(x.ndim) if axes is None else [d % x.ndim for d in _ints(axes)]
    around = {dim: (sides[i], sides[i + len(sides) // 2]) for i, dim in enumerate(dims)}
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[call.get("mode", "constant")]
    first = min((dim for dim, ends in around.items() if any(ends)), default=x.ndim)
    flat = [end for dim in reversed(range(first, x.ndim)) for end in around.get(dim, (0, 0))]
    fill = (call.get("value", 0.0) if value is None else value) if mode == "constant" else None
    return functional.pad(x, flat, mode, fill) if flat else x


def _resize(call: Call, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    mode, how = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    factors = _ints(scales)[2:] if scales is not None and _ints(scales) else None
    size = None if factors else _ints(sizes)[2:]
    if mode == "nearest" and how == "asymmetric" and call.get("nearest_mode") == "floor":
        return functional.interpolate(x, size, factors, "nearest")
    if mode == "linear" and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        name = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
        return functional.interpolate(x, size, factors, name, align_corners=how == "align_corners")
    raise call.refuse(f"mode {mode} with {how} coordinates and nearest_mode {call.get('nearest_mode')}")


def _cast(call: Call, x: Any) -> Any:
    dtype = torch.from_numpy(np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(call.get("to")))).dtype
    if isinstance(x, Numbers):
        return x.tensor().to(dtype) if dtype.is_floating_point else x
    return x.to(dtype)


def _constant_of_shape(call: Call, shape: Any) -> Any:
    value = call.get("value")
    fill = torch.zeros(1) if value is None else torch.from_numpy(numpy_helper.to_array(value).copy())
    return fill.expand(_ints(shape)).clone()


# ---------------------------------------------------------------- element by element


def _clip(call: Call, x: Any, low: Any = None, high: Any = None) -> Any:
    ends = [call.get(name) if value is None else value for name, value in (("min", low), ("max", high))]
    if ends == [0.0, 6.0]:
        return functional.relu6(x)
    return functional.relu(x) if ends == [0.0, None] else torch.clamp(x, *ends)


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(call: Call, *sides: Any) -> Any:
        if not all(isinstance(side, Numbers) for side in sides):
            return function(*(side.tensor() if isinstance(side, Numbers) else side for side in sides))
        width = max(len(side.values) for side in sides)
        lists = (side.values * (width // len(side.values)) for side in sides)
        return Numbers([function(*pair) for pair in zip(*lists, strict=True)], all(side.is_scalar for side in sides))

    return apply


def _divide(left: Any, right: Any) -> Any:
    if isinstance(left, int | torch.SymInt):
        return left // right
    is_whole = isinstance(left, torch.Tensor) and not left.dtype.is_floating_point
    return torch.div(left, right, rounding_mode="trunc") if is_whole else left / right


def _unary(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda call, x, *_: function(x)


def _folded(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def apply(call: Call, first: Any, *others: Any) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return apply


def _maximum(left: Any, right: Any) -> Any:
    return torch.maximum(left, right) if isinstance(right, torch.Tensor) else left.clamp(min=right)


def _minimum(left: Any, right: Any) -> Any:
    return torch.minimum(left, right) if isinstance(right, torch.Tensor) else left.clamp(max=right)


def _prelu(call: Call, x: Any, slope: Any) -> Any:
    if slope.numel() == 1 or (slope.numel() == slope.shape[0] and slope.ndim == x.ndim - 1):
        return functional.prelu(x, slope.flatten())
    return torch.where(x >= 0, x, x * slope)


def _gelu(call: Call, x: Any) -> Any:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


def _hard_sigmoid(call: Call, x: Any) -> Any:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


OPS: dict[str, Callable[..., Any]] = {
    "Abs": _unary(torch.abs),
    "Add": _arithmetic(lambda a, b: a + b),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": lambda call: call.constant(),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _unary(torch.cos),
    "Div": _arithmetic(_divide),
    "Dropout": _unary(lambda x: x),
    "Einsum": lambda call, *values: torch.einsum(call.get("equation"), *values),
    "Elu": lambda call, x: functional.elu(x, call.get("alpha", 1.0)),
    "Equal": _folded(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _unary(lambda x: x.mean(list(range(2, x.ndim)), keepdim=True)),
    "GlobalMaxPool": _unary(lambda x: x.amax(list(range(2, x.ndim)), keepdim=True)),
    "Greater": _folded(torch.gt),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda call, x: functional.leaky_relu(x, call.get("alpha", 0.01)),
    "Less": _folded(torch.lt),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(functional.log_softmax),
    "MatMul": _folded(torch.matmul),
    "Max": _folded(_maximum),
    "MaxPool": _max_pool,
    "Min": _folded(_minimum),
    "Mish": _unary(functional.mish),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _folded(torch.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduction(lambda x, dims, keep: torch.linalg.vector_norm(x, 2, dims, keep)),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _unary(torch.round),
    "Selu": _unary(functional.selu),
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(functional.softmax),
    "Softplus": _unary(functional.softplus),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(lambda a, b: a - b),
    "Sum": _folded(torch.add),
    "Tanh": _unary(torch.tanh),
    "Tile": lambda call, x, repeats: x.repeat(_ints(repeats)),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda call, condition, a, b: torch.where(condition, a, b),
}
# Those that compute on Numbers; the others get tensors.
_ON_NUMBERS = {
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Expand", "Gather", "Identity", "Mul", "Pad", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Sub",
    "Tile", "Unsqueeze",
}  # fmt: skip
