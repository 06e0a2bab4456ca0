"""What a model is said to need beside its weights is what it asks an allocator for."""

import math

import pytest
import torch
import tvm
from example_graphs import example_graph
from tvm import relax

import planish
from planish.backends.tvm.build import compile_model
from planish.backends.tvm.relax import to_relax
from planish.backends.tvm.threads import set_threads
from planish.ir.specialize import fix_batch

INT8 = "canonicalize, fold-batch-norm, insert-fake-quant, calibrate, lower-integers"


@pytest.mark.parametrize(("network", "recipe"), [("resnet", "fold-batch-norm"), ("densenet", ""), ("resnet", INT8)])
def test_an_inference_allocates_what_the_plan_says(network, recipe):
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    target = planish.Target.get("local")
    context = planish.Context(data=[x], target=target)
    graph = planish.Pipeline.parse(recipe).run(example_graph(network), context).graph
    set_threads(1)
    compiled = compile_model(to_relax(fix_batch(graph, 1), target), target)
    asked: list[int] = []

    def note(_function, symbol, is_before, _result, *arguments):
        if symbol == "vm.builtin.alloc_storage" and is_before:
            asked.append(math.prod(arguments[1]))

    machine = relax.VirtualMachine(compiled.module, tvm.cpu())
    machine.set_instrument(note)
    machine["main"](x)
    assert sum(asked) == compiled.arena_bytes > 0
