"""export_onnx: convert, simplify, verify, write."""

import os
from dataclasses import dataclass

from ...ir.errors import BuildError, UsageError
from ...ir.files import write_aside
from ...ir.graph import Graph
from ...ir.ops import describe
from ...ir.verify import SCALE_ARGUMENT
from . import check
from .convert import convert, finish
from .operators import has_integers, standard
from .qdq import to_qdq
from .regions import verify_regions
from .simplify import simplify

OPSET = 20
OPSETS = range(18, 24)  # what torch.onnx writes: below 18 it only converts down, and not everything


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    simplified  whether onnxsim's result was taken; note: why not, empty where it was
    max_error   largest |onnxruntime - PyTorch| / max |PyTorch| over all outputs and batches
    equal       all outputs are PyTorch's bit for bit, as they must be where only integer ops made them
    batches     the batch sizes that were compared
    """

    path: str
    opset: int
    bytes: int
    nodes: int
    simplified: bool
    note: str
    max_error: float
    equal: bool
    batches: tuple[int, ...]


def export_onnx(graph: Graph, path: str | os.PathLike, *, opset: int = OPSET, recipe: str = "") -> OnnxReport:
    """Write a graph as one ONNX file, dynamic batch kept. The same graph gives the same bytes.

    A graph of `lower-integers` becomes float ops between QuantizeLinear and DequantizeLinear (qdq.py), its weights in
    int8 and once.

    recipe: the pipeline's text, kept in the file's metadata.

    The file appears only after onnx.checker accepted it and onnxruntime gave PyTorch's outputs on random inputs at
    batch 1 and 3: exactly those where only integer ops made them, else within a tolerance (exactness.py).

    Raises UsageError for an opset out of range; BuildError naming the op and source line that ONNX lacks, for a
    graph with fake quantizers, for outputs that differ, and for a file larger than its weights explain.
    """
    if opset not in OPSETS:
        raise UsageError("onnx", f"opset is {opset}", f"expected {OPSETS[0]} to {OPSETS[-1]}")
    _refuse_quantizers(graph)
    graph = graph.copy().eval()
    written = to_qdq(graph) if has_integers(graph) else graph
    plain = finish(convert(written, opset), graph, recipe)
    agreement = check.verify(standard(plain), graph)
    taken = simplify(
        plain, lambda model: finish(model, graph, recipe), lambda model: check.verify(standard(model), graph)
    )
    agreement = taken.agreement or agreement
    model = standard(taken.model)
    data = check.serialize(model)
    check.check_size(len(data), written)
    if written is not graph:
        check.check_integer_size(model, written)
        verify_regions(graph, opset)
    with write_aside(path) as draft:
        draft.write_bytes(data)
    return OnnxReport(
        path=str(path),
        opset=opset,
        bytes=len(data),
        nodes=len(model.graph.node),
        simplified=taken.agreement is not None,
        note=taken.note,
        max_error=agreement.max_error,
        equal=agreement.is_equal,
        batches=check.batches(graph),
    )


def _refuse_quantizers(graph: Graph) -> None:
    quantizers = graph.calls(*SCALE_ARGUMENT)
    if quantizers:
        what = f"the graph holds {len(quantizers)} quantizers, the first at {describe(quantizers[0])}"
        raise BuildError("onnx", what, "a file holds integers, not what imitates them", "add lower-integers")
