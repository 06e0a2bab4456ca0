"""Dynamic quantization: against numpy in float32 step by step, exact integers, and torch's own float LSTM."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from integer_arithmetic import check_inference
from torch import nn

from planish.ir.integers.dynamic import dynamic_grid

OPS = torch.ops.planish


def reference(x, weight, scale, bias):
    """The formula in numpy: float32 where it says so, sums in int64, the end in exact fractions."""
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    own = np.maximum(np.float32(np.float32(high - low) / np.float32(255)), np.float32(2.0**-60))
    mantissa, exponent = np.frexp(float(own))
    own = np.float32(np.ldexp(np.ceil(np.ldexp(mantissa, 10)), int(exponent) - 10))
    zero = np.clip(-128 + np.rint(np.float32(-low) / own), -128, 127)
    q = np.clip(np.rint(x / own) + zero, -128, 127).astype(np.int64)
    total = (q - int(zero)) @ weight.astype(np.int64).T
    factor = own * scale
    assert factor.dtype == np.float32
    result = np.empty(total.shape, np.float32)
    for place, value in np.ndenumerate(total.astype(np.float32)):
        exact = Fraction(float(value)) * Fraction(float(factor[place[-1]]))
        result[place] = np.float32(float(exact) + float(bias[place[-1]]))  # float64 holds the product exactly
    return result


def layer(seed: int, inputs: int, outputs: int):
    generator = np.random.default_rng(seed)
    weight = generator.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    scale = (generator.random(outputs) * 0.02 + 1e-4).astype(np.float32)
    return weight, scale, generator.normal(size=outputs).astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "positive", "negative", "tiny", "huge", "zero", "constant", "outlier"])
def test_a_linear_layer_is_the_formula(kind):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(3, 5, 17)).astype(np.float32)
    x = {
        "normal": x, "positive": np.abs(x) + 1, "negative": -np.abs(x) - 1, "tiny": x * np.float32(1e-25),
        "huge": x * np.float32(1e30), "zero": x * 0, "constant": np.full_like(x, 0.37), "outlier": x.copy(),
    }[kind]  # fmt: skip
    if kind == "outlier":
        x[1, 2, 3] = 1000.0
    weight, scale, bias = layer(2, 17, 6)
    given = [torch.from_numpy(each) for each in (x, weight, scale, bias)]
    found = OPS.linear_dynamic(*given)
    assert np.array_equal(found.numpy(), reference(x, weight, scale, bias))
    without = OPS.linear_dynamic(*given[:3], None)
    assert np.array_equal(without.numpy(), reference(x, weight, scale, bias * 0))
    check_inference(OPS.linear_dynamic.default, *given)


def test_a_scale_has_ten_bits_and_covers_what_it_is_of():
    generator = torch.Generator().manual_seed(0)
    for exponent in range(-20, 20):
        x = torch.randn(50, generator=generator) * 2.0**exponent
        scale, zero_point = dynamic_grid(x)
        mantissa, _ = np.frexp(float(scale))
        assert float(mantissa * 1024).is_integer()
        low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
        assert low - scale / 2 <= min(0.0, float(x.min())) and max(0.0, float(x.max())) <= high + scale / 2
        assert scale <= (x.max().clamp(min=0) - x.min().clamp(max=0)) / 255 * (1 + 2.0**-9)


def test_sums_beyond_24_bits_are_exact_before_they_are_rounded():
    x = torch.full((1, 4096), 1.0)
    x[0, 0] = 0.0
    weight = torch.full((1, 4096), 127, dtype=torch.int8)
    weight[0, 1] = 126
    found = OPS.linear_dynamic(x, weight, torch.ones(1), None)
    scale, zero_point = dynamic_grid(x)
    level = int(torch.round(1 / scale).clamp(max=127 - zero_point))
    exact = level * (127 * 4094 + 126)
    assert exact > 2**24
    assert found.item() == np.float32(np.float64(np.float32(exact)) * np.float64(scale.item()))


def test_no_elements():
    assert OPS.linear_dynamic(torch.zeros(0, 4), torch.ones(2, 4, dtype=torch.int8), torch.ones(2), None).shape == (
        0,
        2,
    )


def quantized(lstm: nn.LSTM):
    """int8 weights with a scale per output of an LSTM, in the op's order."""
    weights, scales, biases = [], [], []
    for layer in range(lstm.num_layers):
        for end in ("", "_reverse")[: 2 if lstm.bidirectional else 1]:
            for kind in ("ih", "hh"):
                weight = getattr(lstm, f"weight_{kind}_l{layer}{end}").detach()
                scale = weight.abs().amax(1) / 127
                weights.append(torch.round(weight / scale[:, None]).to(torch.int8))
                scales.append(scale)
                if lstm.bias:
                    biases.append(getattr(lstm, f"bias_{kind}_l{layer}{end}").detach())
    return weights, scales, biases


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}, {"bias": False, "num_layers": 2}],
    ids=str,
)
def test_an_lstm_is_near_torchs_and_its_products_are_the_linear_op(options, batched):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lstm = nn.LSTM(6, 5, **options).eval()
        x = torch.randn(4, 3, 6) if batched else torch.randn(4, 6)
        layers = lstm.num_layers * (2 if lstm.bidirectional else 1)
        state = [torch.randn(layers, 4 if lstm.batch_first else 3, 5) for _ in range(2)]
        state = state if batched else [each[:, 0] for each in state]
    held = quantized(lstm)
    with torch.no_grad():
        wanted, (hidden, cells) = lstm(x, tuple(state))
    found = OPS.lstm_dynamic(x, state, *held, lstm.bidirectional, lstm.batch_first)
    for one, other in zip(found, (wanted, hidden, cells), strict=True):
        assert one.shape == other.shape
        # 8-bit weights and activations: each gate is off by some 2 %, and saturates.
        assert float((one - other).abs().max()) < 0.05
        assert not torch.equal(one, other)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = OPS.lstm_dynamic(mode.from_tensor(x), [mode.from_tensor(s) for s in state], *held,
                                 lstm.bidirectional, lstm.batch_first)  # fmt: skip
    assert [fake.shape for fake in fakes] == [one.shape for one in found]


def test_one_step_by_hand():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        lstm, x, state = nn.LSTM(6, 5).eval(), torch.randn(1, 2, 6), [torch.randn(1, 2, 5) for _ in range(2)]
    weights, scales, biases = quantized(lstm)
    gates = OPS.linear_dynamic(x, weights[0], scales[0], biases[0])[0]
    gates = gates + OPS.linear_dynamic(state[0][0], weights[1], scales[1], biases[1])
    into, forget, new, out = gates.chunk(4, -1)
    cell = torch.sigmoid(forget) * state[1][0] + torch.sigmoid(into) * torch.tanh(new)
    found = OPS.lstm_dynamic(x, state, weights, scales, biases, False, False)
    assert torch.equal(found[2][0], cell) and torch.equal(found[0][0], torch.sigmoid(out) * torch.tanh(cell))
