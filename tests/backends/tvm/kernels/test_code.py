"""What LLVM makes of the kernels: accumulators in registers, wide multiply-adds, multiply-adds by lane on ARM."""

import re
from dataclasses import replace

import pytest
import tvm

from planish.backends.c.compile import compile_kernels
from planish.backends.tvm import lowering
from planish.backends.tvm.arithmetic import NeonFp16, NeonFp32, Sdot, Smull, X86Fp32, fp32
from planish.backends.tvm.build import TIR_PIPELINE
from planish.backends.tvm.kernels import (
    DirectConv,
    Epilogue,
    ExpandDepthwise,
    Pointwise,
    Requantize,
    Window,
    prim_func,
)
from planish.backends.tvm.kernels.builder import Kernel

from .assembly import innermost_loops, multiply_adds, vector_stores

SAME = Window((3, 3), padding=(1, 1, 1, 1))
RELU6 = Epilogue("relu6")
SPECS = {
    "pointwise": Pointwise(1, 14, 14, 96, 96, RELU6),
    "direct": DirectConv(1, 14, 14, 64, 64, SAME, epilogue=RELU6),
    "expand": ExpandDepthwise(1, 14, 14, 32, 96, SAME, RELU6, RELU6),
}
AVX512 = tvm.target.Target({"kind": "llvm", "mcpu": "skylake-avx512", "mattr": ["-prefer-256-bit"]})
PI = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"})
PI_5 = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"})
# Writing one lane of a vector, or reading one into a general register. No kernel below has a reason to.
LANE_MOVES = re.compile(r"^\s+(?:(?:mov|ins)\s+v\d+\.[bhsd]\[\d+\],|umov\s|smov\s)", re.MULTILINE)


def assembly(function, target) -> str:
    function = function.with_attr("global_symbol", "kernel")
    return tvm.compile(function, target, tir_pipeline=TIR_PIPELINE).mod.inspect_source("asm")


def hot_loops(text: str) -> list[list[str]]:
    loops = [loop for loop in innermost_loops(text) if multiply_adds(loop) >= 8]
    assert loops, "no inner loop with multiply-adds"
    return loops


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("arithmetic", "target"), [(X86Fp32(16, 32), AVX512), (NeonFp32(4, 32), PI)])
def test_accumulators_stay_in_registers(spec, arithmetic, target):
    for loop in hot_loops(assembly(prim_func(spec, arithmetic), target)):
        # LLVM may spill a register or two of a full tile; an accumulator in memory is stored at every multiply-add.
        assert vector_stores(loop) <= multiply_adds(loop) / 16


def test_accumulators_in_memory_would_be_seen():
    with Kernel() as kernel:
        source, target = kernel.argument("source", (1024,)), kernel.argument("target", (256,))
        with kernel.loop(64) as k:
            for i in range(16):
                sum_ = target.vector(i * 16, 16) + source.vector(k * 16, 16) * source.vector(i * 16, 16)
                target.store((i * 16 + k) % 256, sum_, 16)
    loops = [loop for loop in innermost_loops(assembly(kernel.prim_func, AVX512)) if multiply_adds(loop)]
    assert all(vector_stores(loop) > multiply_adds(loop) / 16 for loop in loops)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_kernel_promises_that_its_buffers_do_not_overlap(spec):
    assert prim_func(spec, X86Fp32(16, 32)).attrs["tirx.noalias"]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_avx512_code_multiplies_whole_registers(spec):
    for loop in hot_loops(assembly(prim_func(spec, X86Fp32(16, 32)), AVX512)):
        assert sum("zmm" in line for line in loop) >= multiply_adds(loop)


ADDED = Epilogue("relu", residual="before")
IMAGE = DirectConv(1, 32, 32, 3, 32, Window((3, 3), (2, 2), (0, 1, 0, 1)), image=True)


@pytest.mark.parametrize("spec", [Pointwise(1, 28, 28, 64, 64, ADDED), Pointwise(1, 28, 28, 144, 24, ADDED), IMAGE])
def test_maps_larger_than_the_cache_are_asked_for_and_sums_stay_in_registers(spec):
    """On x86 only. A sum that is spilled lies across two cache lines, which made a kernel 1.7 times as slow."""
    cache = 4096
    text = assembly(prim_func(spec, X86Fp32(16, 32, cache=cache)), AVX512)
    for loop in hot_loops(text):
        assert not [line for line in loop if "(%rsp)" in line and "zmm" in line]
    following = any("prefetcht0" in line for loop in hot_loops(text) for line in loop)
    assert following == isinstance(spec, Pointwise)
    assert (
        text.count("prefetch")
        > 0
        == assembly(prim_func(spec, X86Fp32(16, 32, cache=1 << 20)), AVX512).count("prefetch")
    )
    results = assembly(prim_func(spec, NeonFp32(4, 32, cache=cache)), PI).count("prfm\tpst")
    assert bool(results) == isinstance(spec, Pointwise)  # only those of results, and none for an image


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_arm_code_multiplies_by_lane(spec):
    loops = hot_loops(assembly(prim_func(spec, NeonFp32(4, 32)), PI))
    by_lane = [re.search(r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[\d\]", line) for loop in loops for line in loop]
    assert sum(map(bool, by_lane)) >= 32


def pi_5_assembly(spec, arithmetic) -> str:
    """As a board's program is compiled."""
    return compile_kernels({"kernel": prim_func(spec, arithmetic)}, PI_5, "").read_assembly()


@pytest.mark.parametrize("arithmetic", [NeonFp32(4, 32), NeonFp16(8, 32), Sdot(4, 32), Smull(4, 32)])
def test_arm_accumulators_are_whole_vectors(arithmetic):
    """Where LLVM sees accumulators lane by lane, each lane is moved to and fro: a third of the speed."""
    epilogue = Requantize() if arithmetic.accumulator == "int32" else RELU6
    for spec in (Pointwise(1, 14, 14, 96, 96, epilogue), DirectConv(1, 14, 14, 64, 64, SAME, epilogue=epilogue)):
        assert not LANE_MOVES.findall(pi_5_assembly(spec, arithmetic))


@pytest.mark.parametrize("inputs", [24, 96])
def test_upper_halves_are_multiplied_where_they_lie(inputs):
    """Two multiplications and an addition for sixteen products: nothing is widened, or taken apart."""
    function = prim_func(Pointwise(1, 28, 28, inputs, 48, Requantize()), Smull(4, 32))
    text = compile_kernels({"kernel": function}, PI, "").read_assembly()
    counts = [len(re.findall(rf"\b{name}\s+v", text)) for name in ("smull", "smlal2", "sadalp")]
    assert counts[0] == counts[1] == counts[2] > 0
    assert not re.search(r"\b(?:ext|sshll|smlal|smull2)\s+v", text)


def test_four_bytes_are_multiplied_as_a_lane():
    """An image of three channels: loading four bytes into every lane would take a pipe that multiplies."""
    spec = DirectConv(1, 32, 32, 3, 32, Window((3, 3), (2, 2), (1, 1, 1, 1)), epilogue=Requantize())
    loops = [loop for loop in innermost_loops(pi_5_assembly(spec, Sdot(4, 32))) if any("sdot" in line for line in loop)]
    assert loops
    for line in (line for loop in loops for line in loop):
        assert not re.search(r"\b(?:ld1r|dup)\s", line)
        assert "sdot" not in line or ".4b[0]" in line


def test_small_sums_become_bytes_without_conversions():
    """One subtraction makes a float of a sum; its product is rounded before it is added to, as the contract says."""
    small = Requantize(small=True)
    for epilogue in (Requantize(), small, replace(small, saturates=True), replace(small, saturates=True, even=True)):
        text = pi_5_assembly(Pointwise(1, 14, 14, 96, 96, epilogue), Sdot(4, 32))
        assert ("scvtf\tv" in text, "sqxtn\tv" in text) == (not epilogue.small, epilogue.small)
        assert bool(re.search(r"\b[fs]max\s+v", text)) == (not epilogue.saturates)
        assert "fmul\tv" in text and not re.search(r"\bfml[as]\s+v", text)
        assert ("sqadd\tv" in text) == (epilogue.small and not epilogue.even)


def test_a_residual_is_added_without_conversions():
    """Bytes become floats by a sum, a zip and a subtraction; `frintn` and `scvtf` take one pipe for two cycles."""
    epilogue = Requantize("after", small=True, saturates=True)
    text = pi_5_assembly(Pointwise(1, 14, 14, 96, 96, epilogue), Sdot(4, 32))
    assert "sqxtn2\tv" in text and "zip2\tv" in text
    assert not re.search(r"\b(?:scvtf|frintn|sshll2?|tbl)\s+v", text)


def test_registers_of_a_tile_are_started_once():
    """LLVM would start them once more for a window without rows on the image, of which there are none."""
    bordered = DirectConv(1, 56, 56, 64, 64, SAME, epilogue=Requantize(), bordered=True)
    text = pi_5_assembly(bordered, Sdot(4, 32))
    tiles = 3  # at the left end, between, at the right end
    assert len(re.findall(r"\bmov\s+v\d+\.16b", text)) <= tiles * 24


@pytest.mark.parametrize("arithmetic", [NeonFp32(4, 32), Sdot(4, 32)])
def test_accumulators_by_lanes_would_be_seen(arithmetic, monkeypatch):
    """Without this pass the indices of registers are sums of vectors, which LLVM does not take for a whole one."""
    monkeypatch.setattr(lowering, "_FOR_TVM_ONLY", lowering._FOR_TVM_ONLY | {"tirx.StmtSimplify"})
    epilogue = Requantize() if arithmetic.accumulator == "int32" else RELU6
    assert LANE_MOVES.findall(pi_5_assembly(Pointwise(1, 14, 14, 96, 96, epilogue), arithmetic))


@pytest.mark.parametrize("arithmetic", [NeonFp32(4, 32), NeonFp16(8, 32)])
def test_arm_code_clips_without_selecting(arithmetic):
    text = pi_5_assembly(SPECS["pointwise"], arithmetic)
    assert "fmax" in text and "fmin" in text
    assert not re.search(r"\b(?:fcm\w+|bsl|bit|bif|bic)\s+v", text)


def test_only_the_ring_of_the_fused_kernel_is_heap_memory():
    for name, spec in SPECS.items():
        calls = re.findall(
            r"call.*AllocWorkspace|AllocWorkspace@GOT", assembly(prim_func(spec, X86Fp32(16, 32)), AVX512)
        )
        assert bool(calls) == (name == "expand")


def test_the_arithmetic_of_a_triple():
    assert fp32("aarch64-linux-gnu", 4, 32) == NeonFp32(4, 32)
    assert fp32("x86_64-linux-gnu", 8, 16, cores=4) == X86Fp32(8, 16, 4)
