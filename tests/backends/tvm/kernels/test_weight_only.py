"""Linear layers with packed weights against float64, on every arithmetic of this processor."""

import re

import numpy as np
import pytest
import torch
import tvm
from torch.nn import functional as F

from planish.backends.tvm.arithmetic import NeonFp32, X86Fp32, with_stored_weights
from planish.backends.tvm.arithmetic.stored_weights import WEIGHTS
from planish.backends.tvm.build import TIR_PIPELINE
from planish.backends.tvm.kernels import Epilogue, WeightOnlyDense, describe, pack, prim_func, signature

from .assembly import innermost_loops, multiply_adds, vector_stores
from .conftest import Machine, Runner, close, machines

BITS = {"int8": 127, "int4": 7}
FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(params=[(name, kind) for name in sorted(machines()) for kind in WEIGHTS], ids=" ".join)
def stored(request: pytest.FixtureRequest) -> tuple[Runner, str]:
    name, kind = request.param
    machine = machines()[name]
    arithmetic = with_stored_weights(machine.arithmetic, kind)
    if arithmetic is None:
        pytest.skip("x86 without AVX2 does not unpack float16")
    return Runner(Machine(arithmetic, machine.cpu, machine.features)), kind


def operands(kind: str, spec: WeightOnlyDense, rows: int):
    """(input, weight as `pack` takes it, scale, bias, and the weight in float64)."""
    draw = np.random.default_rng((spec.in_features, spec.out_features, rows))
    x = draw.standard_normal((rows, spec.in_features), np.float32)
    bias = draw.standard_normal(spec.out_features, np.float32)
    if kind in FLOATS:
        weight = torch.from_numpy(draw.standard_normal((spec.out_features, spec.in_features), np.float32))
        small = weight.to(FLOATS[kind])
        raw = small.view(torch.uint16).numpy() if kind == "bfloat16" else small.numpy()
        return x, raw, None, bias, small.double().numpy()
    high = BITS[kind]
    q = draw.integers(-high - 1, high + 1, (spec.out_features, spec.in_features)).astype(np.int8)
    # So that products are of order 1, as the tolerance of `close` counts them.
    scale = (draw.uniform(0.5, 1, (spec.out_features, spec.scales)) / high).astype(np.float32)
    weight = q.reshape(*scale.shape, -1) * scale.astype(np.float64)[..., None]
    return x, q, scale, bias, weight.reshape(q.shape)


# rows (None: known at run time), in, out, groups: tails in rows, vectors, words and unrolled steps
SHAPES = [
    (1, 64, 80, 2),
    (1, 33, 17, 1),
    (1, 7, 3, 1),
    (5, 33, 70, 3),
    (13, 96, 40, 3),
    (None, 40, 33, 4),
    (None, 29, 16, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(stored, shape):
    runner, kind = stored
    rows, inputs, outputs, groups = shape
    spec = WeightOnlyDense(rows, inputs, outputs, groups if kind in BITS else 0, Epilogue("relu", residual="before"))
    x, weight, scale, bias, wanted_weight = operands(kind, spec, rows or 3)
    residual = np.random.default_rng(1).standard_normal((len(x), outputs), np.float32)
    got = runner.call(spec, [x], (weight, scale, bias), residual)
    wanted = x.astype(np.float64) @ wanted_weight.T + bias + residual
    close(torch.from_numpy(got), F.relu(torch.from_numpy(wanted)), inputs)


def test_bytes(stored):
    """What a kernel reads: whole vectors and words of this many bits a weight, a scale for 32 of them."""
    runner, kind = stored
    spec = WeightOnlyDense(1, 64, 32, 2 if kind in BITS else 0)
    _, weight, scale, bias, _ = operands(kind, spec, 1)
    arrays = pack(spec, runner.arithmetic, weight, scale, bias)
    bits = {"int8": 8, "int4": 4, "float16": 16, "bfloat16": 16}[kind]
    assert arrays[0].nbytes == 64 * 32 * bits // 8
    assert sum(a.nbytes for a in arrays[1:]) == 32 * 4 * (3 if kind in BITS else 1)
    assert [tuple(a.shape) for a in arrays] == list(signature(spec, runner.arithmetic).weights)
    assert describe(spec, runner.arithmetic).startswith(f"dense, {kind} weights")


# The instructions that one vector of int4 weights costs beside its multiply-add.
TARGETS = {
    "avx512": (X86Fp32(16, 32), {"mcpu": "skylake-avx512", "mattr": ["-prefer-256-bit"]}, [r"vperm(ps|d)"]),
    "avx2": (X86Fp32(8, 16), {"mcpu": "haswell"}, ["vpsrad", "vcvtdq2ps"]),
    "neon": (NeonFp32(4, 32), {"mcpu": "cortex-a72", "mtriple": "aarch64-linux-gnu"}, ["sshr", "scvtf"]),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("groups", [1, 16])
def test_weights_are_unpacked_in_registers(name, groups):
    machine, facts, unpacking = TARGETS[name]
    arithmetic = with_stored_weights(machine, "int4")
    assert arithmetic is not None
    function = prim_func(WeightOnlyDense(1, 512, 256, groups), arithmetic).with_attr("global_symbol", "kernel")
    target = tvm.target.Target({"kind": "llvm", **facts})
    text = tvm.compile(function, target, tir_pipeline=TIR_PIPELINE).mod.inspect_source("asm")
    loops = [loop for loop in innermost_loops(text) if multiply_adds(loop) >= 8]
    assert loops
    for loop in loops:
        for instruction in unpacking:
            # The epilogue of a group may lie in the loop: a multiply-add for each vector of sums, without unpacking.
            found = sum(bool(re.search(instruction, line)) for line in loop)
            assert multiply_adds(loop) * 8 / 9 <= found <= multiply_adds(loop), (instruction, found)
        # LLVM spills some of what it unpacks early on ARM; an accumulator in memory is stored at every multiply-add.
        assert vector_stores(loop) <= multiply_adds(loop) / 6


def test_scales_that_do_not_divide_the_inputs():
    with pytest.raises(ValueError, match=r"3 scales for 64 inputs; expected a number that divides them"):
        WeightOnlyDense(1, 64, 8, 3)
