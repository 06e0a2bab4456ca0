"""A whole net, integer for integer, against numpy in int64: nothing of ours computes what is expected.

Integer weights and biases are made anew from the float weights, the scales and the contract (planish.ir.integers):

    bias        rint(bias / (s_x * s_w[c]))
    requantize  clamp(rint(f32(acc) * f32(f32(s_x * s_w[c]) / s_y)) + z)
    add         the sum of both, scaled, with factors on a grid of 2**-shift, rounded once
"""

from fractions import Fraction

import numpy as np
import pytest
import torch
from integer_arithmetic import conv, half_to_even, requantize
from lower_cases import lower, random_data, settled, values_of
from torch import nn
from torch.nn import functional


class Everything(nn.Module):
    """Convs, a table, relu6, add, pooling by maximum and average, concat, a global mean, a clip, linear layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.branch = nn.Conv2d(8, 5, 1, bias=False)
        self.hidden = nn.Linear(13, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        x = functional.relu6(3 * self.stem(x))
        x = x + self.depthwise(x)
        x = functional.max_pool2d(x, 2)
        x = torch.cat([x, self.branch(x)], 1)
        x = functional.avg_pool2d(x, 2).mean((2, 3))
        return self.head(functional.hardtanh(self.hidden(x), -0.5, 0.5))


class Reference:
    """The contract in numpy, with the scales that calibration found."""

    def __init__(self, lowered, activations):
        self.held = {name: tensor.detach().numpy() for name, tensor in lowered.fake.weights.items()}
        self.low, self.high = (0, 255) if activations == "uint8" else (-128, 127)

    def grid(self, name):
        return np.float32(self.held[f"{name}.activation_scale"]), int(self.held[f"{name}.activation_zero_point"])

    def clipped(self, name, ends):
        """The integers that the ends of a clip fall on."""
        scale, zero = self.grid(name)
        levels = [half_to_even(Fraction(float(e)) / Fraction(float(scale)), zero, self.low, self.high) for e in ends]
        return levels if ends else [self.low, self.high]

    def product(self, layer, values, source, target=None, clip=(), multiply=None):
        """A layer on integers: integers of `target`, or floats where there is none."""
        weight, scale = self.held[f"{layer}.weight"], self.held[f"{layer}.weight_scale"]
        along = (-1, *[1] * (weight.ndim - 1))
        integers = np.clip(np.rint(weight * (np.float32(1) / scale).reshape(along)), -127, 127)
        (scale_in, zero), bias = self.grid(source), self.held.get(f"{layer}.bias", np.zeros(len(scale), np.float32))
        scales = scale_in * scale
        assert scales.dtype == np.float32
        bias = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
        if multiply is None:
            acc = (values - zero) @ integers.astype(np.int64).T + bias.astype(np.int64)
        else:
            acc = conv(values - zero, integers, bias, *multiply)
            scales = scales.reshape(-1, 1, 1)
        if target is None:
            return acc.astype(np.float32) * scales
        scale_out, zero_out = self.grid(target)
        return requantize(acc, scales / scale_out, zero_out, *self.clipped(target, clip))

    def table(self, values, source, target, function):
        """A function of one value, in float64."""
        (scale_in, zero), (scale_out, zero_out) = self.grid(source), self.grid(target)
        reals = function((values - zero) * np.float64(scale_in)) / np.float64(scale_out)
        return np.clip(np.rint(reals) + zero_out, self.low, self.high).astype(np.int64)

    def add(self, left, right, names, target):
        scale, zero = self.grid(target)
        grids = [self.grid(name) for name in names]
        ratios = [float(s) / float(scale) for s, _ in grids]
        shift = min(20, int(np.floor(np.log2(2**22 / (255 * sum(ratios))))))
        total = sum(round(r * 2**shift) * (v - z) for r, v, (_, z) in zip(ratios, (left, right), grids, strict=True))
        rounded = [half_to_even(Fraction(int(t), 2**shift), zero, self.low, self.high) for t in total.ravel()]
        return np.array(rounded).reshape(total.shape)

    def mean(self, values, axes, source, target):
        (scale, zero), (scale_out, zero_out) = self.grid(source), self.grid(target)
        acc = (values - zero).sum(axes)
        count = values.size // acc.size
        return requantize(acc, float(scale) / (count * float(scale_out)), zero_out, self.low, self.high)


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_every_layer_is_exactly_the_contract(activations):
    lowered = lower(settled(Everything), random_data(6, 3, 16, 16), activations)
    x = random_data(2, 3, 16, 16, seed=9) * 1.3  # beyond the calibrated range: some values saturate
    seen = values_of(lowered.integer, x)
    reference = Reference(lowered, activations)
    scale, zero = reference.grid("x")
    q = np.clip(np.rint(x.numpy() / scale) + zero, reference.low, reference.high).astype(np.int64)
    np.testing.assert_array_equal(seen["x_int8"], q)
    assert (q == reference.high).any() and (q == reference.low).any()

    q = reference.product("stem", q, "x", "conv2d", multiply=([2, 2], [1, 1], [1, 1], 1))
    np.testing.assert_array_equal(seen["conv2d_int8"], q)
    stem = reference.table(q, "conv2d", "relu6", lambda v: np.clip(3 * v, 0, 6))
    np.testing.assert_array_equal(seen["relu6_int8"], stem)
    q = reference.product("depthwise", stem, "relu6", "conv2d_1", multiply=([1, 1], [1, 1], [1, 1], 8))
    np.testing.assert_array_equal(seen["conv2d_1_int8"], q)
    q = reference.add(stem, q, ("relu6", "conv2d_1"), "add")
    np.testing.assert_array_equal(seen["add_int8"], q)
    q = q.reshape(2, 8, 4, 2, 4, 2).max((3, 5))
    # Both inputs of a concat have the scale of the sum.
    branch = reference.product("branch", q, "add", "add", multiply=([1, 1], [0, 0], [1, 1], 1))
    np.testing.assert_array_equal(seen["conv2d_2_int8"], branch)
    q = np.concatenate([q, branch], 1)
    q = reference.mean(q.reshape(2, 13, 2, 2, 2, 2), (3, 5), "add", "avg_pool2d")
    np.testing.assert_array_equal(seen["avg_pool2d_int8"], q)
    q = reference.mean(q, (2, 3), "avg_pool2d", "mean")
    q = reference.product("hidden", q, "mean", "hardtanh", clip=(-0.5, 0.5))
    np.testing.assert_array_equal(seen["hardtanh_int8"], q)
    answer = lowered.integer(x).numpy()
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, reference.product("head", q, "hardtanh"))
    assert np.abs(answer - lowered.source(x).detach().numpy()).max() < 0.1 * np.abs(answer).max()
