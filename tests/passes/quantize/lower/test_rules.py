"""One small net for each rule: which integer ops it becomes, that nothing is left in float, and how far it is off.

Every quantizer is compared by itself, on the same inputs (lower_cases.differences). What an integer op computes and
what the fake-quantized op computes before both are rounded differs by less than one step:

    biases       rounded to accumulator units: half a unit, which is half of `multiplier` steps, and that is below 1
    sums of two  factors rounded to 2**-21: at most 2 * 255 * 2**-21 steps
    bilinear     weights rounded to 2**-12: at most 255 * 2**-11 input steps, an eighth
    float32      the fake-quantized graph's own sums, and its division by a scale as a product with the reciprocal

Two numbers less than one step apart round to integers at most one step apart, and to different ones only near a half.
"""

import pytest
import torch
from lower_cases import differences, lower, lower_net, ops, random_data, settled, values_of
from torch import nn
from torch.nn import functional

from planish.ir.verify import verify

CONV = ["conv_int32", "requantize"]
POOL = ["sum_pool2d_int32", "requantize"]
FLAT_POOL = ["unsqueeze", "sum_pool2d_int32", "squeeze", "requantize"]
BY_POSITION = ["sum_pool2d_int32", "flatten", "requantize", "unflatten"]

# What stands between two convs (of 8 x 8 maps), and what it becomes in integers, behind the first conv's own store.
BETWEEN = {
    "relu": (lambda m, y: torch.relu(y), []),
    "relu6": (lambda m, y: functional.relu6(y), []),
    "clamp off zero": (lambda m, y: y.clamp(0.1, 0.4), []),
    "two clips": (lambda m, y: torch.relu(y).clamp(max=0.3), ["lookup_int8"]),
    "dropout": (lambda m, y: functional.dropout(y, 0.5, m.training), []),
    "hardswish": (lambda m, y: functional.hardswish(y), ["lookup_int8"]),
    "gelu": (lambda m, y: functional.gelu(y), ["lookup_int8"]),
    "sigmoid": (lambda m, y: torch.sigmoid(y), ["lookup_int8"]),
    "leaky relu": (lambda m, y: functional.leaky_relu(y, 0.1), ["lookup_int8"]),
    "number": (lambda m, y: 0.3 * y + 1, ["lookup_int8", "lookup_int8"]),
    "itself": (lambda m, y: y + y, ["lookup_int8"]),
    "square": (lambda m, y: y * y, ["lookup_int8"]),
    "max_pool2d": (lambda m, y: functional.max_pool2d(y, 3, 2, 1, ceil_mode=True), ["max_pool2d"]),
    "adaptive_max_pool2d": (lambda m, y: functional.adaptive_max_pool2d(y, (4, 2)), ["max_pool2d"]),
    "avg_pool2d": (lambda m, y: functional.avg_pool2d(y, 2), POOL),
    "avg_pool2d, padded": (lambda m, y: functional.avg_pool2d(y, 3, 2, 1), POOL),
    "avg_pool2d, a divisor": (lambda m, y: functional.avg_pool2d(y, 2, divisor_override=3), POOL),
    "avg_pool2d, uncounted": (lambda m, y: functional.avg_pool2d(y, 3, 2, 1, count_include_pad=False), BY_POSITION),
    "avg_pool2d, ceil": (
        lambda m, y: functional.avg_pool2d(y, [3, 2], [2, 3], ceil_mode=True), ["constant_pad_nd", *BY_POSITION],
    ),
    "avg_pool2d, ceil that fits": (lambda m, y: functional.avg_pool2d(y, 2, ceil_mode=True), POOL),
    "avg_pool2d, both": (
        lambda m, y: functional.avg_pool2d(y, [3, 4], [2, 3], 1, True, False), ["constant_pad_nd", *BY_POSITION],
    ),
    "adaptive_avg_pool2d": (lambda m, y: functional.adaptive_avg_pool2d(y, (4, 2)), POOL),
    "mean": (lambda m, y: y.mean((2, 3), keepdim=True), ["sum_int32", "requantize"]),
    "amax": (lambda m, y: y.amax((2, 3), keepdim=True), ["amax"]),
    "nearest": (lambda m, y: functional.interpolate(y, scale_factor=2), ["upsample_nearest2d_int8"]),
    "nearest, odd": (lambda m, y: functional.interpolate(y, size=(5, 13)), ["upsample_nearest2d_int8"]),
    "bilinear": (
        lambda m, y: functional.interpolate(y, scale_factor=2, mode="bilinear"),
        ["upsample_bilinear2d_int32", "requantize"],
    ),
    "bilinear, corners": (
        lambda m, y: functional.interpolate(y, size=(5, 13), mode="bilinear", align_corners=True),
        ["upsample_bilinear2d_int32", "requantize"],
    ),
    "bilinear, given scale": (
        lambda m, y: functional.interpolate(y, scale_factor=(1.7, 0.6), mode="bilinear", recompute_scale_factor=False),
        ["upsample_bilinear2d_int32", "requantize"],
    ),
    "pad": (lambda m, y: functional.pad(y, (1, 0, 2, 1)), ["pad"]),
    "pad, reflected": (lambda m, y: functional.pad(y, (1, 1, 2, 2), mode="reflect"), ["pad"]),
    "pad, replicated": (lambda m, y: functional.pad(y, (1, 1, 2, 2), mode="replicate"), ["pad"]),
    "pixel shuffle": (
        lambda m, y: functional.pixel_unshuffle(functional.pixel_shuffle(y, 2), 2),
        ["pixel_shuffle", "pixel_unshuffle"],
    ),
    "channels shuffled by hand": (
        lambda m, y: y.view(-1, 2, 2, 8, 8).transpose(1, 2).contiguous().view(-1, 4, 8, 8),
        ["view", "transpose", "contiguous", "view"],
    ),
    "channel shuffle": (lambda m, y: functional.channel_shuffle(y, 2), ["channel_shuffle"]),
    "chunks": (lambda m, y: torch.cat(y.chunk(2, 1)[::-1], 1), ["chunk", "getitem", "getitem", "cat"]),
    "roll and flip": (lambda m, y: y.roll(1, 2).flip(3), ["roll", "flip"]),
    "views": (
        lambda m, y: y.view(y.size(0), 2, 2, 8, 8).transpose(1, 2).flatten(1, 2), ["view", "transpose", "flatten"],
    ),
    "narrow": (lambda m, y: y.narrow(3, 1, 5), ["narrow"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BETWEEN)
def test_between_two_convs(case):
    between, expected = BETWEEN[case]
    lowered = lower_net(lambda m, x: m.other(between(m, m.conv(x))))
    found = [op for op in ops(lowered.integer) if op != "sym_size"]
    assert found == ["quantize", *CONV, *expected, "conv_int32", "dequantize_int32"]
    check(lowered)


MAPS = {
    "add": (lambda m, x: m.other(torch.relu(m.conv(x) + x)), [*CONV, "add_int8"]),
    "add, broadcast": (
        lambda m, x: m.other(m.conv(x) + m.other(x).mean((2, 3), keepdim=True)),
        [*CONV, *CONV, "sum_int32", "requantize", "add_int8"],
    ),
    "sub, alpha": (lambda m, x: m.other(torch.sub(m.conv(x), x, alpha=2)), [*CONV, "add_int8"]),
    "mul": (lambda m, x: m.other(m.conv(x) * x), [*CONV, "mul_int32", "requantize"]),
    "squeeze and excite": (
        lambda m, x: m.other(excited(m, m.conv(x))),
        [*CONV, "sum_int32", "requantize", *CONV, "lookup_int8", "mul_int32", "requantize"],
    ),
    "matmul": (
        lambda m, x: m.conv(m.conv(x) @ m.other(x).transpose(2, 3)),
        [*CONV, *CONV, "transpose", "matmul_int32", "requantize"],
    ),
    "matmul with itself": (
        lambda m, x: m.conv((lambda y: y @ y)(m.conv(x))), [*CONV, "matmul_int32", "requantize"],
    ),
    "concat": (lambda m, x: m.other(torch.cat([m.conv(x), x], 2)), [*CONV, "cat"]),
    "stack": (lambda m, x: m.other(torch.stack([m.conv(x), x], 2).flatten(2, 3)), [*CONV, "stack", "flatten"]),
    "a value read twice": (lambda m, x: m.other(torch.relu(m.conv(x)) + m.conv(x)), None),
    "one layer twice": (lambda m, x: m.other(m.conv(torch.relu(m.conv(x)))), [*CONV, *CONV]),
    "no bias": (lambda m, x: m.other(functional.conv2d(x, m.conv.weight)), CONV),
    "same padding": (lambda m, x: m.other(functional.conv2d(x, m.conv.weight, padding="same")), CONV),
    "valid padding": (lambda m, x: m.other(functional.conv2d(x, m.conv.weight, padding="valid")), CONV),
}  # fmt: skip


def excited(m, y):
    return y * torch.sigmoid(m.conv(y.mean((2, 3), keepdim=True)))


@pytest.mark.parametrize("case", MAPS)
def test_several_values(case):
    function, expected = MAPS[case]
    lowered = lower_net(function, activations="int8")
    if expected is not None:
        assert ops(lowered.integer) == ["quantize", *expected, "conv_int32", "dequantize_int32"]
    check(lowered)


LINES = {
    "max_pool1d": (lambda m, y: functional.max_pool1d(y, 3, 2, 1), ["unsqueeze", "max_pool2d", "squeeze"]),
    "adaptive_max_pool1d": (lambda m, y: functional.adaptive_max_pool1d(y, 4), ["unsqueeze", "max_pool2d", "squeeze"]),
    "avg_pool1d": (lambda m, y: functional.avg_pool1d(y, 3, 2, 1), FLAT_POOL),
    "avg_pool1d, ceil and uncounted": (
        lambda m, y: functional.avg_pool1d(y, 4, 3, 1, True, False),
        ["constant_pad_nd", *FLAT_POOL],
    ),
    "adaptive_avg_pool1d": (lambda m, y: functional.adaptive_avg_pool1d(y, 4), FLAT_POOL),
    "mean of the last dim": (lambda m, y: y.mean(-1, keepdim=True), ["sum_int32", "requantize"]),
}


@pytest.mark.parametrize("case", LINES)
def test_in_one_dim(case):
    between, expected = LINES[case]
    lowered = lower_net(lambda m, x: m.conv1d(between(m, m.conv1d(x))), 4, 4, 16)
    assert ops(lowered.integer) == ["quantize", *CONV, *expected, "conv_int32", "dequantize_int32"]
    check(lowered)


LAYERS = {
    "conv1d, strided and dilated": (lambda: nn.Conv1d(4, 6, 3, 2, 2, 2), (4, 4, 15), "conv_int32"),
    "conv2d in groups": (lambda: nn.Conv2d(6, 9, (3, 2), (1, 2), (0, 1), (2, 1), groups=3), (4, 6, 9, 8), "conv_int32"),
    "depthwise": (lambda: nn.Conv2d(5, 10, 3, padding=1, groups=5), (4, 5, 7, 7), "conv_int32"),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1), (4, 4, 9), "conv_transpose_int32"),
    "conv_transpose2d in groups": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), 1, (1, 0), groups=2, dilation=(1, 2)),
        (4, 4, 5, 6),
        "conv_transpose_int32",
    ),
    "linear over tokens": (lambda: nn.Linear(7, 5), (4, 6, 7), "linear_int32"),
    "linear without bias": (lambda: nn.Linear(7, 5, bias=False), (4, 7), "linear_int32"),
}


@pytest.mark.parametrize("case", LAYERS)
def test_layers(case):
    make, shape, op = LAYERS[case]
    model = settled(lambda: nn.Sequential(make(), nn.ReLU(), _head()))
    lowered = lower(model, random_data(*shape))
    assert ops(lowered.integer)[:3] == ["quantize", op, "requantize"]
    check(lowered)


def _head() -> nn.Module:
    """A layer that takes any shape, so that what is before it is stored as integers."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 2)

        def forward(self, x):
            return self.layer(x.unsqueeze(-1))

    return Head()


NORMS = {
    "2d": (lambda: nn.BatchNorm2d(6), (4, 6, 5, 5)),
    "2d, no parameters": (lambda: nn.BatchNorm2d(6, affine=False), (4, 6, 5, 5)),
    "1d": (lambda: nn.BatchNorm1d(6), (4, 6, 9)),
}


@pytest.mark.parametrize("case", NORMS)
def test_a_batch_norm_that_stands_alone_is_a_depthwise_product(case):
    """Its integers against float64: half a step, and what the offset's rounding to 1/127 of an input step adds."""
    make, shape = NORMS[case]

    def pre_activated() -> nn.Module:
        conv = nn.Conv1d if len(shape) == 3 else nn.Conv2d
        return nn.Sequential(conv(6, 6, 1), nn.ReLU(), make(), nn.ReLU(), conv(6, 2, 1))

    model = settled(pre_activated)
    lowered = lower(model, random_data(*shape))
    expected = ["quantize", *CONV, "conv_int32", "requantize", "conv_int32", "dequantize_int32"]
    assert ops(lowered.integer) == expected
    check(lowered)
    norm = model[2]
    seen = values_of(lowered.integer, lowered.data)
    values = [seen[node.name] for node in lowered.integer.calls("requantize")]
    held = lowered.fake.weights
    names = ("relu.activation", "relu_1.activation")
    grids = [(float(held[f"{name}_scale"]), int(held[f"{name}_zero_point"])) for name in names]
    (scale, zero), (scale_out, zero_out) = grids
    exact = torch.relu(norm.double()((values[0].double() - zero) * scale))
    got = (values[1].double() - zero_out) * scale_out
    gain = 1.0 if norm.weight is None else norm.weight.detach().abs().max()
    gain = float(gain / torch.sqrt(norm.running_var.min() + norm.eps))
    # 1.001: three factors that float32 rounds.
    assert float((exact - got).detach().abs().max()) <= 1.001 * (scale_out / 2 + gain * scale / 254)


FOLDED = {
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6), (4, 4, 6, 6)),
    "conv2d without bias": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), lambda: nn.BatchNorm2d(6), (4, 4, 6, 6)),
    "conv_transpose2d in groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
        lambda: nn.BatchNorm2d(6),
        (4, 4, 5, 5),
    ),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), lambda: nn.BatchNorm1d(6), (4, 4, 9)),
    "linear": (lambda: nn.Linear(4, 6), lambda: nn.BatchNorm1d(6), (40, 4)),
}


@pytest.mark.parametrize("gain", ["random", "one zero"])
@pytest.mark.parametrize("case", FOLDED)
def test_a_batch_norm_behind_a_product_is_in_its_store(case, gain):
    """Gains of both signs, and of zero, for which only the offset is left."""
    make, norm, shape = FOLDED[case]
    model = settled(lambda: nn.Sequential(make(), norm(), nn.ReLU(), _head()))
    if gain == "one zero":
        with torch.no_grad():
            model[1].weight[2] = 0.0
            model[1].bias[2] = 0.7
    lowered = lower(model, random_data(*shape))
    assert len(ops(lowered.integer)) - ops(lowered.integer).count("unsqueeze") == 5
    assert "batch_norm" not in ops(lowered.integer)
    check(lowered)


def check(lowered) -> None:
    """Nothing is left in float, every value is at most one step off and few are, and the answers stay."""
    verify(lowered.integer)
    assert lowered.result.skipped == ()
    details = lowered.result.details
    assert details["integer_macs"] == 1.0 and details["float_products"] == 0
    assert (details["from_float"], details["to_float"]) == (1, 1)
    found = differences(lowered, lowered.data)
    assert found
    for entry in found:
        assert entry.most <= 1, entry
        assert entry.share <= 0.02, entry  # of 1000 values or so
    wanted, got = (graph(lowered.data).detach() for graph in (lowered.fake, lowered.integer))
    assert got.dtype == torch.float32
    assert float((wanted - got).square().sum()) <= 1e-3 * float(wanted.square().sum())  # 30 dB
