"""Integer arithmetic to check integer ops against: numpy in int64, one kernel tap at a time, and exact fractions."""

from fractions import Fraction

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import planish.ir.integers  # noqa: F401  registers the ops

DTYPES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def conv(values, weight, bias, stride, padding, dilation, groups):
    """[N, C, H, W] * [O, C / groups, h, w] + [O] in int64; zeros around the values."""
    values = np.pad(values, [(0, 0), (0, 0), *((p, p) for p in padding)]).astype(np.int64)
    weight = weight.astype(np.int64).reshape(groups, -1, *weight.shape[1:])
    kernel = weight.shape[-2:]
    height, width = (
        (have - d * (k - 1) - 1) // s + 1
        for have, d, k, s in zip(values.shape[2:], dilation, kernel, stride, strict=True)
    )
    values = values.reshape(len(values), groups, -1, *values.shape[2:])
    total = np.zeros((len(values), groups, weight.shape[1], height, width), np.int64)
    for i, j in np.ndindex(*kernel):
        top, left = i * dilation[0], j * dilation[1]
        rows = slice(top, top + (height - 1) * stride[0] + 1, stride[0])
        columns = slice(left, left + (width - 1) * stride[1] + 1, stride[1])
        total += np.einsum("ngchw,goc->ngohw", values[..., rows, columns], weight[..., i, j])
    return total.reshape(len(values), -1, height, width) + bias.astype(np.int64).reshape(-1, 1, 1)


def conv_transpose(values, weight, bias, stride, padding, output_padding, groups, dilation):
    """[N, C, H, W] spread by [C, O / groups, h, w] + [O] in int64."""
    values, weight = values.astype(np.int64), weight.astype(np.int64)
    n, _, height, width = values.shape
    weight = weight.reshape(groups, -1, *weight.shape[1:])
    kernel = weight.shape[-2:]
    full = [
        (have - 1) * s + d * (k - 1) + 1 + o
        for have, s, d, k, o in zip((height, width), stride, dilation, kernel, output_padding, strict=True)
    ]
    values = values.reshape(n, groups, -1, height, width)
    total = np.zeros((n, groups, weight.shape[2], *full), np.int64)
    for i, j in np.ndindex(*kernel):
        top, left = i * dilation[0], j * dilation[1]
        rows = slice(top, top + (height - 1) * stride[0] + 1, stride[0])
        columns = slice(left, left + (width - 1) * stride[1] + 1, stride[1])
        total[..., rows, columns] += np.einsum("ngchw,gco->ngohw", values, weight[..., i, j])
    total = total[..., padding[0] : full[0] - padding[0], padding[1] : full[1] - padding[1]]
    return total.reshape(n, -1, *total.shape[-2:]) + bias.astype(np.int64).reshape(-1, 1, 1)


def requantize(acc, multiplier, zero_point, low, high):
    """The contract of `requantize` in numpy's float32, which rounds every operation once, to even."""
    assert np.abs(acc).max(initial=0) < 2**31
    with np.errstate(over="ignore"):
        steps = np.rint(acc.astype(np.int32).astype(np.float32) * np.asarray(multiplier, np.float32))
    return np.clip(steps.astype(np.float64) + zero_point, low, high).astype(np.int64)


def half_to_even(value: Fraction, zero_point: int, low: int, high: int) -> int:
    """An exact fraction as an integer on a grid. Python rounds fractions half to even, without an error."""
    return min(max(round(value) + zero_point, low), high)


def check_inference(op, *args, batched: int = 1) -> torch.Tensor:
    """Run an op; its shape function, on first arguments whose batch is symbolic, must tell the same type.

    They have two rows or more, for torch takes an extent of one for a constant. Returns the value.
    """
    value = op(*args)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fakes = []
    for position, argument in enumerate(args):
        if isinstance(argument, torch.Tensor):
            dims = [DimDynamic.STATIC] * argument.ndim
            dims[:1] = [DimDynamic.DYNAMIC if position < batched else DimDynamic.STATIC] * len(dims[:1])
            argument = mode.from_tensor(argument, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dims))
        fakes.append(argument)
    with mode:
        fake = op(*fakes)
    assert [int(e) if isinstance(e, int) else int(e.node.hint) for e in fake.shape] == list(value.shape)
    assert fake.dtype == value.dtype
    assert isinstance(fake.shape[0], torch.SymInt)
    return value


def random_integers(seed: int, shape: tuple[int, ...], dtype: torch.dtype, kind: str = "all") -> torch.Tensor:
    """8-bit integers: `all` of them, or `ends` only, where sums are largest."""
    low, high = DTYPES[dtype]
    generator = np.random.default_rng(seed)
    ends = generator.choice([low, high], shape)
    return torch.from_numpy(generator.integers(low, high + 1, shape) if kind == "all" else ends).to(dtype)
