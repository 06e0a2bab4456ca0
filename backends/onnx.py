"""Graph -> ONNX: float export by torch.onnx, simplified by onnxsim, checked by onnxruntime before it is written."""

import importlib.metadata
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
from torch.utils import _pytree as pytree

from ..ir.errors import BuildError, UsageError, first_line
from ..ir.files import write_aside
from ..ir.graph import Graph
from ..ir.ops import describe, op_name, tensors
from ..ir.verify import SCALE_ARGUMENT

OPSET = 20
OPSETS = range(18, 24)  # what torch.onnx writes: below 18 it only converts down, and not everything

BATCHES = (1, 3)
# Against PyTorch in the same dtype, relative to the largest output: another order of summation, layer upon layer.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# One protobuf message holds at most 2 GiB; a file may be this much larger than the weights it holds.
_LARGEST_FILE = 2**31 - 1
_SLACK_BYTES = 1 << 20
_SLACK_FACTOR = 1.05

_TARGET = re.compile(r"target=torch\.ops\.([\w.]+)")


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    simplified  whether onnxsim's result was taken; note: why not, empty where it was
    max_error   largest |onnxruntime - PyTorch| / max |PyTorch| over all outputs and batches
    batches     the batch sizes that were compared
    """

    path: str
    opset: int
    bytes: int
    nodes: int
    simplified: bool
    note: str
    max_error: float
    batches: tuple[int, ...]


def export_onnx(graph: Graph, path: str | os.PathLike, *, opset: int = OPSET, recipe: str = "") -> OnnxReport:
    """Write a float graph as one ONNX file, dynamic batch kept. The same graph gives the same bytes.

    recipe: the pipeline's text, kept in the file's metadata.

    The file appears only after onnx.checker accepted it and onnxruntime gave PyTorch's outputs on random inputs at
    batch 1 and 3, within TOLERANCE.

    Raises UsageError for an opset out of range; BuildError naming the op and source line that ONNX lacks, for a
    quantized graph, for outputs that differ, and for a file larger than its weights explain.
    """
    if opset not in OPSETS:
        raise UsageError("onnx", f"opset is {opset}", f"expected {OPSETS[0]} to {OPSETS[-1]}")
    _refuse_quantizers(graph)
    graph = graph.copy().eval()
    plain = _finish(_convert(graph, opset), graph, recipe)
    error = _verify(plain, graph)
    report = OnnxReport(str(path), opset, 0, 0, simplified=False, note="", max_error=error, batches=_batches(graph))
    model, report = _simplify(plain, graph, recipe, report)
    data = _serialize(model)
    _check_size(data, graph)
    with write_aside(path) as draft:
        draft.write_bytes(data)
    return replace(report, bytes=len(data), nodes=len(model.graph.node))


def _refuse_quantizers(graph: Graph) -> None:
    quantizers = graph.calls(*SCALE_ARGUMENT)
    if quantizers:
        what = f"the graph holds {len(quantizers)} quantizers, the first at {describe(quantizers[0])}"
        raise BuildError("onnx", what, "integer ONNX export is not supported in this version", "export the float graph")


def _convert(graph: Graph, opset: int) -> onnx.ModelProto:
    program = graph.exported_program()
    try:
        with _quiet():
            exported = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    except Exception as error:
        raise _conversion_error(graph, error) from error
    assert exported is not None
    return exported.model_proto


def _conversion_error(graph: Graph, error: BaseException) -> BuildError:
    """Name our node where torch.onnx names its op; decomposition may have made an op that the graph does not have."""
    text, cause = "", error
    while cause is not None:
        text, cause = f"{text}\n{cause}", cause.__cause__
    found = _TARGET.search(text)
    if found is None:
        return BuildError("onnx", f"torch.onnx failed: {first_line(error)}")
    bare = found[1].split(".")[-2]
    same = [n for n in graph.nodes if n.op == "call_function" and op_name(n).endswith(bare)]
    return BuildError("onnx", f"{describe(same[0]) if same else repr(found[1])} has no ONNX form in torch.onnx")


def _finish(model: onnx.ModelProto, graph: Graph, recipe: str) -> onnx.ModelProto:
    """Our names for symbolic extents, our metadata; no source paths of the machine that exported."""
    own = onnx.ModelProto()
    own.CopyFrom(model)
    own.producer_name, own.producer_version = "planish", importlib.metadata.version("planish")
    own.doc_string = ""
    for holder in (own, own.graph, *own.graph.node, *own.graph.initializer, *own.graph.input, *own.graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del own.graph.value_info[:]
    if recipe:
        own.metadata_props.add(key="planish.recipe", value=recipe)
    for values, specs in ((own.graph.input, graph.inputs), (own.graph.output, graph.outputs)):
        if len(values) != len(specs):
            raise BuildError("onnx", f"torch.onnx made {len(values)} inputs or outputs of {len(specs)}")
        for value, spec in zip(values, specs, strict=True):
            for dim, extent in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
                if isinstance(extent, str):
                    dim.dim_param = extent
    return own


def _simplify(
    plain: onnx.ModelProto, graph: Graph, recipe: str, report: OnnxReport
) -> tuple[onnx.ModelProto, OnnxReport]:
    """onnxsim's model where it is sound, no larger and has the same outputs; else the plain one, and why."""
    try:
        simpler, _ = onnxsim.simplify(plain)
        simpler = _finish(simpler, graph, recipe)
        error = _verify(simpler, graph)
    except Exception as failure:
        return plain, replace(report, note=f"onnxsim's model was not taken: {first_line(failure)}")
    if simpler.ByteSize() > plain.ByteSize():
        growth = f"{plain.ByteSize()} to {simpler.ByteSize()} bytes"
        return plain, replace(report, note=f"onnxsim's model was not taken: it grew from {growth}")
    return simpler, replace(report, simplified=True, max_error=error)


def _serialize(model: onnx.ModelProto) -> bytes:
    if model.ByteSize() > _LARGEST_FILE:
        raise BuildError("onnx", f"the model has {model.ByteSize():,} bytes", "one ONNX file holds at most 2 GiB")
    return model.SerializeToString(deterministic=True)


def _check_size(data: bytes, graph: Graph) -> None:
    """Constant folding that unpacks or repeats weights shows here."""
    weights = sum(t.numel() * t.element_size() for t in {id(t): t for t in graph.weights.values()}.values())
    if len(data) > weights * _SLACK_FACTOR + _SLACK_BYTES:
        what = f"the file would have {len(data):,} bytes for {weights:,} bytes of weights"
        raise BuildError("onnx", what, "the exporter folded constants that are larger than what they are made from")


def _batches(graph: Graph) -> tuple[int, ...]:
    is_dynamic = any(isinstance(extent, str) for spec in graph.inputs for extent in spec.shape)
    return BATCHES if is_dynamic else BATCHES[:1]


def _verify(model: onnx.ModelProto, graph: Graph) -> float:
    """The largest relative error against PyTorch. Raises BuildError where checker, runtime or outputs object."""
    try:
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(_serialize(model), _session_options(), ["CPUExecutionProvider"])
    except BuildError:
        raise
    except Exception as error:
        raise BuildError("onnx", f"the exported model is refused: {first_line(error)}") from error
    return max(_compare(session, model, graph, batch) for batch in _batches(graph))


def _compare(session: onnxruntime.InferenceSession, model: onnx.ModelProto, graph: Graph, batch: int) -> float:
    inputs = graph.example_inputs(batch=batch, seed=batch)
    feed = {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, inputs, strict=True)}
    actual = session.run(None, feed)
    args, kwargs = graph.call_arguments(inputs)
    with torch.no_grad():
        wanted = [t for leaf in pytree.tree_leaves(graph(*args, **kwargs)) for t in tensors(leaf)]
    worst = 0.0
    for spec, expected, got in zip(graph.outputs, wanted, actual, strict=True):
        error = _relative_error(expected, np.asarray(got))
        if not error <= TOLERANCE.get(expected.dtype, 0.0):  # NaN is no agreement
            limit = TOLERANCE.get(expected.dtype, 0.0)
            what = f"output '{spec.name}' differs from PyTorch by {error:.2g} of its largest value at batch {batch}"
            raise BuildError("onnx", what, f"at most {limit:g} is allowed")
        worst = max(worst, error)
    return worst


def _relative_error(expected: torch.Tensor, got: np.ndarray) -> float:
    if tuple(expected.shape) != got.shape:
        return float("inf")
    wanted = expected.double().numpy()
    if not wanted.size:
        return 0.0
    return float(np.abs(wanted - got.astype(np.float64)).max() / max(np.abs(wanted).max(), 1e-30))


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx warns of optional packages and of its own deprecations, none of which a user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
