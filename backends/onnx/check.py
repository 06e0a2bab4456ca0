"""What every written file has passed: onnx.checker, onnxruntime against PyTorch, and its size."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from torch.utils import _pytree as pytree

from ...ir.errors import BuildError, first_line
from ...ir.graph import Graph
from ...ir.ops import tensors
from .exactness import exactness, tolerance

BATCHES = (1, 3)

# One protobuf message holds at most 2 GiB; a file may be this much larger than the weights it holds.
_LARGEST_FILE = 2**31 - 1
_SLACK_BYTES = 1 << 20
_SLACK_FACTOR = 1.05
# The tensors of an integer file are its weights, and a few shapes that torch.onnx made.
_INTEGER_SLACK_BYTES = 1 << 14


@dataclass(frozen=True)
class Agreement:
    """onnxruntime beside PyTorch: the largest |difference| / max |PyTorch|, and whether all bits are equal."""

    max_error: float
    is_equal: bool


def batches(graph: Graph) -> tuple[int, ...]:
    """The batch sizes at which outputs are compared."""
    is_dynamic = any(isinstance(extent, str) for spec in graph.inputs for extent in spec.shape)
    return BATCHES if is_dynamic else BATCHES[:1]


def verify(model: onnx.ModelProto, graph: Graph) -> Agreement:
    """Compare the outputs with PyTorch's. Raises BuildError where checker, runtime or outputs object."""
    try:
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(serialize(model), session_options(), ["CPUExecutionProvider"])
    except BuildError:
        raise
    except Exception as error:
        raise BuildError("onnx", f"the exported model is refused: {first_line(error)}") from error
    found = [_compare(session, model, graph, batch) for batch in batches(graph)]
    return Agreement(max(one.max_error for one in found), all(one.is_equal for one in found))


def session_options() -> onnxruntime.SessionOptions:
    """One thread, and int8 activations in integer kernels on x86 too, where that is not onnxruntime's default."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    return options


def serialize(model: onnx.ModelProto) -> bytes:
    """The bytes of a file. Raises BuildError where one file cannot hold them."""
    if model.ByteSize() > _LARGEST_FILE:
        raise BuildError("onnx", f"the model has {model.ByteSize():,} bytes", "one ONNX file holds at most 2 GiB")
    return model.SerializeToString(deterministic=True)


def check_size(size: int, graph: Graph) -> None:
    """Constant folding that unpacks or repeats weights shows here. `graph` is what was converted."""
    weights = _weight_bytes(graph)
    if size > weights * _SLACK_FACTOR + _SLACK_BYTES:
        what = f"the file would have {size:,} bytes for {weights:,} bytes of weights"
        raise BuildError("onnx", what, "the exporter folded constants that are larger than what they are made from")


def check_integer_size(model: onnx.ModelProto, graph: Graph) -> None:
    """Weights are in the file once and in 8 bits. `graph` is the integer graph as it was converted."""
    weights = _weight_bytes(graph)
    held = sum(map(_tensor_bytes, model.graph.initializer))
    held += sum(_tensor_bytes(a.t) for node in model.graph.node for a in node.attribute if a.HasField("t"))
    if held > weights * _SLACK_FACTOR + _INTEGER_SLACK_BYTES:
        what = f"the file would hold {held:,} bytes of tensors for {weights:,} bytes of weights"
        raise BuildError("onnx", what, "quantized weights were unpacked or repeated")


def _weight_bytes(graph: Graph) -> int:
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in graph.weights.values()}.values())


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    return onnx.numpy_helper.to_array(tensor).nbytes


def _compare(session: onnxruntime.InferenceSession, model: onnx.ModelProto, graph: Graph, batch: int) -> Agreement:
    inputs = graph.example_inputs(batch=batch, seed=batch)
    feed = {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, inputs, strict=True)}
    actual = session.run(None, feed)
    args, kwargs = graph.call_arguments(inputs)
    with torch.no_grad():
        wanted = [t for leaf in pytree.tree_leaves(graph(*args, **kwargs)) for t in tensors(leaf)]
    levels = exactness(graph)
    worst, is_equal = 0.0, True
    for spec, level, expected, got in zip(graph.outputs, levels, wanted, actual, strict=True):
        dtype = torch.float16 if "half" in graph.properties else expected.dtype  # of what it is computed from
        error, limit = relative_error(expected, np.asarray(got)), tolerance(level, dtype)
        if not error <= limit:  # NaN is no agreement
            what = f"output '{spec.name}' differs from PyTorch by {error:.2g} of its largest value at batch {batch}"
            raise BuildError("onnx", what, f"at most {limit:g} is allowed")
        worst, is_equal = max(worst, error), is_equal and error == 0.0
    return Agreement(worst, is_equal)


def relative_error(expected: torch.Tensor, got: np.ndarray) -> float:
    """The largest difference beside the largest expected value; infinite where shapes differ."""
    if tuple(expected.shape) != got.shape:
        return float("inf")
    wanted = expected.double().numpy()
    if not wanted.size:
        return 0.0
    return float(np.abs(wanted - got.astype(np.float64)).max() / max(np.abs(wanted).max(), 1e-30))
