"""Integer regions between float ones, each compared by itself.

Where a float result is quantized again, a rounding error may move it by a step, and layers behind it no longer show
whether their own integers are right. So the file is converted once more with those quantized values as outputs, and
PyTorch computes on from onnxruntime's: what integer ops make of them must be equal, what float ops make of them within
rounding.
"""

from typing import Any

import onnx
import onnxruntime
import torch
from torch import fx
from torch.utils import _pytree as pytree

from ...ir import rewrite, shapes
from ...ir.errors import BuildError
from ...ir.graph import Graph
from ...ir.ops import arguments, describe
from . import check
from .convert import convert, finish
from .exactness import Exactness, exactness, levels, tolerance
from .operators import standard
from .qdq import to_qdq


def verify_regions(graph: Graph, opset: int) -> None:
    """Raises BuildError where a region differs by more than it may. Nothing to do for a graph without such regions."""
    restarts = _restarts(graph)
    if not restarts:
        return
    tapped = _with_outputs(graph, restarts)
    model = standard(finish(convert(to_qdq(tapped), opset), tapped, ""))
    session = onnxruntime.InferenceSession(check.serialize(model), check.session_options(), ["CPUExecutionProvider"])
    for batch in check.batches(graph):
        _compare(session, model, graph, restarts, batch)


def _restarts(graph: Graph) -> list[fx.Node]:
    """The quantized values that float arithmetic made."""
    found = levels(graph)
    return [node for node in graph.calls("quantize") if found[arguments(node).x] is not Exactness.EQUAL]


def _with_outputs(graph: Graph, more: list[fx.Node]) -> Graph:
    """A copy with further outputs, all of them in one list."""
    names, twin = [node.name for node in more], graph.copy()
    output = twin.module.graph.output_node()
    values = [*output.all_input_nodes, *(twin.node(name) for name in names)]
    output.args = (values,)
    codegen: Any = twin.module.graph._codegen
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=pytree.tree_structure([0] * len(values)))
    rewrite.finish(twin)
    return twin


def _compare(
    session: onnxruntime.InferenceSession, model: onnx.ModelProto, graph: Graph, restarts: list[fx.Node], batch: int
) -> None:
    inputs = graph.example_inputs(batch=batch, seed=batch)
    feed = {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, inputs, strict=True)}
    actual = [torch.from_numpy(value) for value in session.run(None, feed)]
    given = dict(zip(restarts, actual[len(graph.outputs) :], strict=True))
    tensors = iter(inputs)
    placeholders = graph.module.graph.find_nodes(op="placeholder")
    leaves = [n.meta["val"] if shapes.is_constant_input(n) else next(tensors) for n in placeholders]
    replay = _Replay(graph, given)
    with torch.no_grad():
        replay.run(*leaves, enable_io_processing=False)
    since = exactness(graph, restarts=frozenset(restarts))
    wanted = [replay.env[node] for node in graph.module.graph.output_node().all_input_nodes]
    for spec, level, expected, got in zip(graph.outputs, since, wanted, actual, strict=False):
        error, limit = check.relative_error(expected, got.numpy()), tolerance(level, expected.dtype)
        if not error <= limit:
            what = f"output '{spec.name}' differs from PyTorch by {error:.2g} of its largest value"
            raise BuildError("onnx", what, f"at most {limit:g} is allowed on the same integers")


class _Replay(fx.Interpreter):
    """Runs a graph on integers that are given, once it has made sure that its own are at most a step away."""

    def __init__(self, graph: Graph, given: dict[fx.Node, torch.Tensor]):
        super().__init__(graph.module, garbage_collect_values=False)
        self.given = given

    def run_node(self, n: fx.Node) -> Any:
        own = super().run_node(n)
        if n not in self.given:
            return own
        steps = int((own.to(torch.int32) - self.given[n].to(torch.int32)).abs().max()) if own.numel() else 0
        if steps > 1:
            what = f"{describe(n)} differs from PyTorch by {steps} steps"
            raise BuildError("onnx", what, "a rounding error before it moves it by one at most")
        return self.given[n]
