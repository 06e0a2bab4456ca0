"""Fake-quantized graphs that tests train."""

from functools import cache

from train_cases import batches, conv_graph

from planish.ir.ops import arguments
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline

DATA = batches(8, (3, 8, 8))
QUANTIZED = "insert-fake-quant, calibrate"
ACTIVATIONS, WEIGHTS = "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"


def run(text, graph, data=DATA, **context):
    outcome = Pipeline.parse(text).run(graph, Context(data=data, **context))
    return outcome.graph, outcome.steps[-1].result


@cache
def _quantized(before):
    return run(f"{before}{QUANTIZED}", conv_graph())[0]


def quantized(before="fold-batch-norm, "):
    return _quantized(before).copy()


def scales(graph, op):
    return {str(name): graph.weight(name) for name in (arguments(q).scale.target for q in graph.calls(op))}
