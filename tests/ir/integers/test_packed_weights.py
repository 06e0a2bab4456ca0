"""Packed weights against float64 and against numbers written out by hand."""

import numpy as np
import pytest
import torch
from integer_arithmetic import check_inference
from torch import nn

import planish
from planish.ir.archive import load, save
from planish.ir.cost import cost
from planish.ir.errors import UsageError
from planish.ir.integers.packed_weights import dequantized, pack_int4, steps

OP = torch.ops.planish.linear_weight_only


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_nibbles_by_hand():
    q = torch.tensor([[1, -1, 7, -8, 3], [0, 2, -7, 5, -2]], dtype=torch.int8)
    packed = pack_int4(q)
    # The earlier weight is in the low half, both in two's complement; the last upper half is empty.
    assert packed.tolist() == [[0xF1, 0x87, 0x03], [0x20, 0x59, 0x0E]]
    assert packed.dtype == torch.uint8
    assert torch.equal(steps(packed, 5), q)


def test_every_nibble_returns():
    q = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8)
    assert torch.equal(steps(pack_int4(q), 2), q)


@pytest.mark.parametrize("high", [7, 127])
@pytest.mark.parametrize(("inputs", "groups"), [(7, 1), (12, 3), (9, 3)])
def test_integers(high, inputs, groups):
    q = draw(0).integers(-high, high + 1, (5, inputs)).astype(np.int8)
    scale = draw(1).uniform(0.01, 1, (5, groups)).astype(np.float32)
    weight = pack_int4(torch.from_numpy(q)) if high == 7 else torch.from_numpy(q)
    wanted = (q.reshape(5, groups, -1) * scale.astype(np.float64)[..., None]).reshape(5, inputs)
    # One product, rounded once to float32.
    got = dequantized(weight, torch.from_numpy(scale), inputs)
    np.testing.assert_array_equal(got.numpy(), wanted.astype(np.float32))
    x, bias = torch.randn(3, 2, inputs), torch.randn(5)
    y = check_inference(OP, x, weight, torch.from_numpy(scale), bias)
    expected = x.double() @ got.double().T + bias.double()
    # float32 sums of `inputs` products of some ten at most.
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4 if high == 127 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_floats(dtype):
    weight = torch.randn(4, 6).to(dtype)
    x = torch.randn(3, 6)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(check_inference(OP, x, weight, None, None).double(), expected, rtol=1e-5, atol=1e-5)


def _int8(*shape):
    return torch.zeros(shape, dtype=torch.int8)


WRONG = {
    "the weight is float32; expected int8": (torch.zeros(4, 6), torch.ones(4, 1)),
    r"the weight is uint8 of shape \[4, 6\], it does not fit 6 inputs; expected \[outputs, 3\]": (
        torch.zeros(4, 6, dtype=torch.uint8), torch.ones(4, 1),
    ),
    "the weight is int8 and has no scale": (_int8(4, 6), None),
    "the weight is float16 and has a scale": (torch.zeros(4, 6, dtype=torch.float16), torch.ones(4, 1)),
    r"scales of shape \[4, 4\] for 4 outputs and 6 inputs; expected": (_int8(4, 6), torch.ones(4, 4)),
    r"scales of shape \[3, 2\]": (_int8(4, 6), torch.ones(3, 2)),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_an_error(message):
    with pytest.raises(UsageError, match=message):
        OP(torch.randn(2, 6), *WRONG[message], None)


@pytest.mark.parametrize(("bits", "stored"), [(4, 5 * 4), (8, 5 * 7)])
def test_cost_counts_weights_and_products(bits, stored, tmp_path):
    recipe = f"insert-fake-quant{{activations=none, weight-bits={bits}}}, calibrate{{data=none}}, lower-weights"
    graph = planish.Pipeline.parse(recipe).run(planish.capture(nn.Linear(7, 5).eval(), torch.randn(2, 7))).graph
    found = cost(graph, batch=3)
    assert (found.params, found.macs) == (7 * 5 + 5, 3 * 7 * 5)
    assert found.bytes == stored + 4 * 5 + 4 * 5
    save(graph, tmp_path / "packed.graph")
    again, x = load(tmp_path / "packed.graph"), torch.randn(2, 7)
    assert torch.equal(again(x), graph(x)) and cost(again, batch=3) == found
