"""32-bit ARM: what LLVM makes of the kernels, and what its emulated code computes."""

import re
import shutil
from functools import cache

import pytest
import torch
from models import EXAMPLES

import planish
from planish.backends.c.compile import compile_kernels
from planish.backends.target import Target
from planish.backends.tvm.arithmetic import Armv7Fp32, Vmull, fp32, integers, with_stored_weights
from planish.backends.tvm.arithmetic.stored_weights import WEIGHTS
from planish.backends.tvm.build import tvm_target
from planish.backends.tvm.instructions import multiply_accumulate
from planish.backends.tvm.kernels import DirectConv, Epilogue, Pointwise, Requantize, WeightOnlyDense, Window, prim_func

from .assembly import innermost_loops, multiply_adds, vector_stores

BOARD = Target.get("raspberry-pi-2")
FLOATS, BYTES = Armv7Fp32(4, 16), Vmull(4, 16)
SAME = Window((3, 3), padding=(1, 1, 1, 1))
QEMU = pytest.mark.skipif(
    not (shutil.which("qemu-arm") or shutil.which("qemu-arm-static")), reason="qemu-user is not installed"
)


@cache
def assembly(spec, arithmetic) -> str:
    return compile_kernels({"kernel": prim_func(spec, arithmetic)}, tvm_target(BOARD), "").read_assembly()


def conv(kind, epilogue):
    if kind == "1x1":
        return Pointwise(1, 14, 14, 96, 96, epilogue)
    return DirectConv(1, 14, 14, 64, 64, SAME, epilogue=epilogue)


def hot_loops(text):
    loops = [loop for loop in innermost_loops(text) if multiply_adds(loop) >= 8]
    assert loops, "no inner loop with multiply-adds"
    return loops


@pytest.mark.parametrize("kind", ["1x1", "3x3"])
def test_sums_stay_in_registers(kind):
    """Sixteen registers: LLVM's older scheduler spills in every tile, which this would see as stores in the loop."""
    for loop in hot_loops(assembly(conv(kind, Epilogue("relu6")), FLOATS)):
        assert vector_stores(loop) <= multiply_adds(loop) / 16
        assert not any(re.search(r"\bv(?:mul|add)\.f32\s+q", line) for line in loop)  # fused, and nothing else
        assert sum("vdup.32" in line for line in loop) < multiply_adds(loop)  # one spread serves several vectors


def test_bytes_are_multiplied_in_pairs():
    text = assembly(conv("1x1", Requantize()), BYTES)
    loops = [loop for loop in innermost_loops(text) if any("vmlal.s8" in line for line in loop)]
    assert loops
    for loop in loops:
        counts = [sum(name in line for line in loop) for name in ("vmull.s8", "vmlal.s8", "vpadal.s16")]
        assert counts[0] == counts[1] == counts[2] and vector_stores(loop) <= counts[0] / 8
    assert multiply_accumulate(text) == "vmlal.s8"


def test_four_bytes_of_a_pixel_stay_off_the_stack():
    """An image of three channels: LLVM takes a vector of two 16-bit lanes apart by way of memory."""
    spec = DirectConv(1, 16, 16, 3, 16, Window((7, 7), padding=(3, 3, 3, 3)), epilogue=Requantize())
    loops = [loop for loop in innermost_loops(assembly(spec, BYTES)) if any("vmlal.s8" in line for line in loop)]
    assert loops
    for loop in loops:
        assert not any("[sp" in line for line in loop) and sum("vdup.16" in line for line in loop) >= 2


@pytest.mark.parametrize("activation", ["relu6", "silu", "tanh", "gelu"])
def test_no_kernel_calls_a_library_to_round(activation):
    """ARMv7 has no instruction that rounds: LLVM would call floorf and its like for every lane."""
    calls = re.findall(r"\bbl\s+(\w+)", assembly(Pointwise(1, 4, 4, 8, 8, Epilogue(activation)), FLOATS))
    assert not {call for call in calls if not call.startswith("mem")}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_stored_weights_are_unpacked_by_vectors(kind):
    arithmetic = with_stored_weights(FLOATS, kind)
    assert arithmetic is not None and arithmetic.lanes == 4
    loops = [
        loop
        for loop in innermost_loops(assembly(WeightOnlyDense(1, 128, 64, 1), arithmetic))
        if multiply_adds(loop) >= 8
    ]
    assert loops
    for loop in loops:
        assert not any(re.search(r"vcvtb|ldrh|ldrsb", line) for line in loop)


def test_the_arithmetic_of_the_board():
    assert fp32(BOARD.triple, 4, 16) == FLOATS
    assert integers(BOARD.features, 4, 16) == BYTES


@QEMU
def test_a_network_answers_like_pytorch():
    make, shape = EXAMPLES["efficientnet"]
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, *shape, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    compiled = planish.compile(model, (x,), target=BOARD.name)
    with torch.no_grad():
        wanted = model.double()(x.double())
    # Sums of at most a few hundred products of order 1, each rounded once (6e-8); layer after layer they add up.
    torch.testing.assert_close(compiled(x).double(), wanted, rtol=1e-4, atol=1e-5)
    assert "vfma.f32 q" in {layer["instruction"] for layer in compiled.report.layers}
