"""Kernels become plain C symbols, and what needs TVM's runtime is refused."""

import re

import pytest
from tvm.script import tirx as T

from planish.backends.c.compile import assembly_by_kernel, compile_kernels, workspace_bytes
from planish.backends.target import Target
from planish.backends.tvm.build import tvm_target
from planish.ir.errors import BuildError


@T.prim_func(s_tir=True)
def double(X: T.Buffer((64,)), Y: T.Buffer((64,))):
    for i in T.parallel(4):
        for j in T.vectorized(16):
            Y[i * 16 + j] = X[i * 16 + j] + X[i * 16 + j]


@T.prim_func(s_tir=True)
def sums(X: T.Buffer((8, 1000)), Y: T.Buffer((8,))):
    """A row of 1000 floats is too long for the stack: two workspaces."""
    for i in range(8):
        with T.sblock("row"):
            backwards = T.sblock_alloc_buffer((1000,))
            halves = T.sblock_alloc_buffer((500,))
            for j in range(1000):
                backwards[999 - j] = X[i, j]
            for j in range(500):
                halves[j] = backwards[2 * j] * backwards[2 * j + 1]
            Y[i] = T.float32(0)
            for j in range(500):
                Y[i] = Y[i] * T.float32(0.5) + halves[499 - j]


@T.prim_func(s_tir=True)
def scaled(X: T.Buffer((4,)), factor: T.float32, Y: T.Buffer((4,))):
    for i in range(4):
        Y[i] = X[i] * factor


@T.prim_func(s_tir=True)
def printing(X: T.Buffer((4,)), Y: T.Buffer((4,))):
    for i in range(4):
        Y[i] = X[i]
        T.evaluate(T.call_packed("testing.echo", X[i]))


def compiled(target="raspberry-pi-4", **kernels):
    return compile_kernels(kernels, tvm_target(Target.get(target)), "m_")


def test_symbols_are_the_prefixed_kernels_and_open_slots(symbols_of, tmp_path):
    compiled(double=double, sums=sums).module.write_to_file(str(tmp_path / "k.o"))
    found, missing = symbols_of(tmp_path / "k.o")
    assert not missing
    mine = {name for name in found if name.startswith("m_")}
    assert mine == {"m_double", "m_sums"}
    slots = {"__TVMBackendParallelLaunch", "__TVMBackendAllocWorkspace", "__TVMBackendFreeWorkspace"}
    helpers = {"__truncsfhf2", "__extendhfsf2"}  # weak; LLVM's half precision for cores without it
    assert found - mine <= slots | helpers


def test_the_workspace_is_the_sum_of_what_a_kernel_takes():
    assert compiled(sums=sums).workspace_bytes == 4032 + 2048
    assert compiled(double=double).workspace_bytes == 0
    assert compiled(double=double, sums=sums).workspace_bytes == 4032 + 2048


def test_the_same_kernels_give_the_same_object(tmp_path):
    objects = []
    for name, kernels in (("a", {"double": double, "sums": sums}), ("b", {"sums": sums, "double": double})):
        compiled(**kernels).module.write_to_file(str(tmp_path / f"{name}.o"))
        objects.append((tmp_path / f"{name}.o").read_bytes())
    assert objects[0] == objects[1]


@pytest.mark.parametrize(("target", "add"), [("raspberry-pi-4", r"fadd\s+v\d+\.4s"), ("x86-64-v3", r"vaddps.*ymm")])
def test_assembly_holds_each_kernel_with_its_parallel_loop(target, add):
    texts = assembly_by_kernel(compiled(target, double=double, sums=sums), "m_")
    assert set(texts) == {"double", "sums"}
    assert re.search(add, texts["double"]) and "__tvm_parallel_lambda" in texts["double"]
    assert not re.search(add, texts["sums"]) and "debug" not in texts["sums"]


def test_pointers_are_promised_not_to_overlap():
    # `double` makes no promise itself; without it LLVM would have to keep the order of loads and stores.
    text = compiled(double=double).module.inspect_source("ll")
    assert re.search(r"define .*@m_double\(ptr noalias .*, ptr noalias", text)


def test_a_scalar_argument_is_refused():
    with pytest.raises(BuildError, match="scaled: the kernel takes a scalar 'factor'"):
        compiled(scaled=scaled)


def test_a_call_of_the_runtime_is_refused():
    with pytest.raises(BuildError, match=r"printing: the kernel calls .* of TVM's runtime; a C program has libc only"):
        compiled(printing=printing)


def test_memory_of_unknown_size_is_refused():
    text = "X = T.TVMBackendAllocWorkspace(1, 0, T.Cast(n), 2, 32)"
    with pytest.raises(BuildError, match="allocates memory of a size that is not constant"):
        workspace_bytes("k", text)
