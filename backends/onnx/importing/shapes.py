"""Shapes, moves and resizing."""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from .call import Call, Numbers, given, integers


def shape_(call: Call, x: Any) -> Any:
    return Numbers(list(x.shape)[call.get("start", 0) : call.get("end")])


def reshape(call: Call, x: Any, shape: Any) -> Any:
    if isinstance(x, Numbers):
        return Numbers(x.values, is_scalar=not integers(shape))
    wanted = integers(shape)
    if not call.get("allowzero"):
        wanted = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(call: Call, x: Any) -> Any:
    axis = call.get("axis", 1) % (x.ndim + 1)
    if axis == 1:
        return x.flatten(1)
    return x.reshape([1, -1] if axis == 0 else [x[(slice(None),) * axis + (0,) * (x.ndim - axis)].numel(), -1])


def transpose(call: Call, x: Any) -> Any:
    return x.permute(call.get("perm", list(reversed(range(x.ndim)))))


def squeeze(call: Call, x: Any, axes: Any = None) -> Any:
    if isinstance(x, Numbers):
        return Numbers(x.values, is_scalar=True)
    dims = given(call, "axes", axes)
    return x.squeeze() if dims is None else x.squeeze(dims)


def unsqueeze(call: Call, x: Any, axes: Any = None) -> Any:
    if isinstance(x, Numbers):
        return Numbers(x.values)
    dims = given(call, "axes", axes)
    for dim in sorted(d % (x.ndim + len(dims)) for d in dims):
        x = x.unsqueeze(dim)
    return x


def concat(call: Call, *values: Any) -> Any:
    if all(isinstance(value, Numbers) for value in values):
        return Numbers([extent for value in values for extent in value.values])
    return torch.cat(values, call.get("axis"))


def gather(call: Call, x: Any, indices: Any) -> Any:
    axis, is_scalar = call.get("axis", 0), isinstance(indices, Numbers) and indices.is_scalar
    if isinstance(x, Numbers):
        return Numbers([x.values[i] for i in integers(indices)], is_scalar)
    if is_scalar:
        return x.select(axis, indices.values[0])
    indices = indices.tensor() if isinstance(indices, Numbers) else indices
    if x.ndim == 2 and axis == 0 and x.dtype.is_floating_point:
        return functional.embedding(indices.long(), x)
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1)
    return x.index_select(axis, flat).unflatten(axis % x.ndim, list(indices.shape))


def slice_(call: Call, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    first, last = given(call, "starts", starts), given(call, "ends", ends)
    dims = given(call, "axes", axes, list(range(len(first))))
    strides = [1] * len(first) if steps is None else integers(steps)
    for dim, start, end, step in zip(dims, first, last, strides, strict=True):
        if isinstance(x, Numbers):
            x = Numbers(x.values[start:end:step])
        elif step > 0:
            x = x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]
        else:
            x = x.index_select(dim, torch.tensor(list(range(x.shape[dim]))[start:end:step]))
    return x


def split(call: Call, x: Any, sizes: Any = None) -> Any:
    axis, wanted = call.get("axis", 0), given(call, "split", sizes)
    count = call.get("num_outputs", len(call.outputs))
    return tuple(x.split(wanted if wanted else -(-x.shape[axis] // count), axis))


def expand(call: Call, x: Any, shape: Any) -> Any:
    return x.expand(torch.broadcast_shapes(x.shape, integers(shape)))


def pad_(call: Call, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    sides = given(call, "pads", pads)
    dims = range(x.ndim) if axes is None else [d % x.ndim for d in integers(axes)]
    around = {dim: (sides[i], sides[i + len(sides) // 2]) for i, dim in enumerate(dims)}
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[call.get("mode", "constant")]
    first = min((dim for dim, ends in around.items() if any(ends)), default=x.ndim)
    flat = [end for dim in reversed(range(first, x.ndim)) for end in around.get(dim, (0, 0))]
    fill = (call.get("value", 0.0) if value is None else value) if mode == "constant" else None
    return functional.pad(x, flat, mode, fill) if flat else x


def resize(call: Call, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    mode, how = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    factors = integers(scales)[2:] if scales is not None and integers(scales) else None
    size = None if factors else integers(sizes)[2:]
    if mode == "nearest" and how == "asymmetric" and call.get("nearest_mode") == "floor":
        return functional.interpolate(x, size, factors, "nearest")
    if mode == "linear" and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        name = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
        return functional.interpolate(x, size, factors, name, align_corners=how == "align_corners")
    raise call.refuse(f"mode {mode} with {how} coordinates and nearest_mode {call.get('nearest_mode')}")


def cast(call: Call, x: Any) -> Any:
    dtype = torch.from_numpy(np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(call.get("to")))).dtype
    if isinstance(x, Numbers):
        return x.tensor().to(dtype) if dtype.is_floating_point else x
    return x.to(dtype)


def constant_of_shape(call: Call, shape: Any) -> Any:
    value = call.get("value")
    fill = torch.zeros(1) if value is None else torch.from_numpy(numpy_helper.to_array(value).copy())
    return fill.expand(integers(shape)).clone()
