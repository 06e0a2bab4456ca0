"""The passes that are left out for our own kernels find nothing in them: the machine code is the same without them."""

import pytest
import torch
from example_graphs import example_graph

import planish
from planish.backends.c.compile import compile_kernels
from planish.backends.target import Target
from planish.backends.tvm.build import lower, tvm_target
from planish.backends.tvm.lowering import OWN_KERNEL
from planish.backends.tvm.relax import to_relax
from planish.ir.specialize import fix_batch

INTEGERS = "canonicalize, fold-batch-norm, insert-fake-quant, calibrate, lower-integers"


FLOAT = "canonicalize, fold-batch-norm"
# Integers on x86 and on ARM without the dot product are left out: the order of equal sums there moves what LLVM spills.
CASES = [("x86-64-v3-vnni", FLOAT), ("raspberry-pi-4", FLOAT), ("raspberry-pi-5", INTEGERS)]


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_what_is_left_out_changes_no_byte(name, recipe):
    target, x = Target.get(name), torch.randn(2, 3, 16, 16)
    graph = (
        planish.Pipeline.parse(recipe).run(example_graph("mobilenet"), planish.Context(data=[x], target=target)).graph
    )
    model = to_relax(fix_batch(graph, 1), target)
    lowered = lower(model, target)
    kernels = {symbol: lowered[symbol] for symbol in sorted({layer.symbol for layer in model.layers})}
    assert len(kernels) > 4 and all(OWN_KERNEL in kernel.attrs for kernel in kernels.values())
    whole = {symbol: kernel.without_attr(OWN_KERNEL) for symbol, kernel in kernels.items()}
    short, full = (compile_kernels(given, tvm_target(target), "m_") for given in (kernels, whole))
    assert short.read_assembly() == full.read_assembly() and short.workspace_bytes == full.workspace_bytes
