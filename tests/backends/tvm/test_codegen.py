"""Kernels are compiled in parts: the same bytes on any number of cores, with a linker and without one."""

import pytest
import torch
import tvm
from example_graphs import example_graph
from tvm import tirx

import planish
from planish.backends.target import Target
from planish.backends.tvm import build, codegen
from planish.backends.tvm.relax import to_relax
from planish.ir.errors import BuildError
from planish.ir.specialize import fix_batch
from planish.passes.pipeline import DEFAULT_RECIPE

LOCAL = Target.get("local")


@pytest.fixture(scope="module")
def graph():
    return fix_batch(planish.Pipeline.parse(DEFAULT_RECIPE).run(example_graph("mobilenet")).graph, 1)


@pytest.fixture(scope="module")
def linked(graph):
    return build.compile_model(to_relax(graph, LOCAL), LOCAL)


def test_the_number_of_cores_changes_no_byte(graph, linked, monkeypatch):
    monkeypatch.setattr(codegen.os, "cpu_count", lambda: 1)
    model = to_relax(graph, LOCAL)
    alone = build.compile_model(model, LOCAL)
    assert alone.library.read_bytes() == linked.library.read_bytes()
    assert alone.assembly() == linked.assembly()
    # Every kernel's text is there, whichever part it went to.
    symbols = {layer.symbol for layer in model.layers}
    assert len(symbols) > codegen.PARTS and all(symbol in alone.assembly() for symbol in symbols)


def test_without_a_linker_tvm_links_in_memory(graph, linked, monkeypatch):
    def no_linker(*_arguments):
        raise BuildError("link", "there is no linker", "install one")

    monkeypatch.setattr(build, "link_shared", no_linker)
    in_memory = build.compile_model(to_relax(graph, LOCAL), LOCAL)
    assert linked.library is not None and in_memory.library is None
    (x,) = graph.example_inputs()  # the same code on the same machine: the same bits
    assert torch.equal(in_memory(x)[0], linked(x)[0]) and in_memory.assembly() == linked.assembly()


def test_lowering_on_several_cores_keeps_order_and_code(graph):
    board = Target.get("raspberry-pi-4")
    target, lowered = build.tvm_target(board), build.lower(to_relax(graph, board), board)
    kernels = {var: function for var, function in lowered.functions.items() if isinstance(function, tirx.PrimFunc)}
    module = tirx.transform.BindTarget(target.with_host(target))(tvm.IRModule(kernels))
    convention = tirx.transform.MakePackedAPI()
    at_once, together = codegen.lower_kernels(module, convention), codegen.lower_together(module, convention)
    assert [var.name_hint for var in together.functions] == [var.name_hint for var in at_once.functions]
    assert together.script() == at_once.script()
