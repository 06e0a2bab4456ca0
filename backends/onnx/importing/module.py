"""ONNX files come in: a file becomes an nn.Module of plain PyTorch calls, checked against onnxruntime, then a Graph.

Written here because no kept importer gives what torch.export can capture: onnx2torch (last release in 2024) knows no
operator of opset 18 or later, onnx2pytorch reads axes and shapes from tensors as the model runs.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch.utils import _pytree as pytree

from ....ir.capture import capture
from ....ir.errors import CaptureError, UsageError, first_line
from ....ir.graph import Graph, attribute, set_attribute
from .call import Call, Numbers
from .operators import OPS, run

OPSETS_IN = range(11, 24)
_TOLERANCE = 1e-4  # float32 sums in another order, layer upon layer, relative to the largest output
_BATCH = 2
_PLAIN = re.compile(r"[^A-Za-z0-9_.]")


class OnnxModule(torch.nn.Module):
    """What an ONNX graph computes, with its float tensors as parameters under their own names.

    Integer tensors (shapes, axes, indices) are constants: what is computed from them alone is computed once, here.
    """

    def __init__(self, model: onnx.ModelProto):
        super().__init__()
        self._opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        tensors = {tensor.name: _tensor(tensor) for tensor in model.graph.initializer}
        self._inputs = [value.name for value in model.graph.input if value.name not in tensors]
        self._outputs = [value.name for value in model.graph.output]
        self._constants: dict[str, Any] = {"": None}
        self._weights: dict[str, str] = {}
        self._settings = _read_by(model, {"Resize": (1, 2, 3)})
        self._statistics = _read_by(model, {"BatchNormalization": (3, 4)})
        for name, tensor in tensors.items():
            self._hold(name, tensor)
        self._calls: list[Call] = []
        for node in model.graph.node:
            self._add(Call.of(node, self._opset))

    def forward(self, *inputs: torch.Tensor) -> Any:
        values: dict[str, Any] = {**self._constants, **dict(zip(self._inputs, inputs, strict=True))}
        values.update({name: attribute(self, weight) for name, weight in self._weights.items()})
        for call in self._calls:
            values.update(run(call, [values[name] for name in call.inputs]))
        results = [values[name] for name in self._outputs]
        return results[0] if len(results) == 1 else tuple(results)

    def _hold(self, name: str, value: Any) -> None:
        """Float tensors are weights (a batch norm's statistics are not trained); the rest says how to compute."""
        if not isinstance(value, torch.Tensor):
            self._constants[name] = value
        elif value.dtype.is_floating_point and value.ndim and name not in self._settings:
            self._weights[name] = weight = self._free_name(name)
            set_attribute(self, weight, value if name in self._statistics else torch.nn.Parameter(value))
        elif value.dtype.is_floating_point and not value.ndim:
            self._constants[name] = float(value)
        elif value.ndim > 1 or value.dtype == torch.bool:
            self._constants[name] = value
        else:
            self._constants[name] = Numbers(value.reshape(-1).tolist(), is_scalar=not value.ndim)

    def _free_name(self, name: str) -> str:
        """The name, as far as modules can have it: `onnx::Conv_12` is `onnx__Conv_12`."""
        parts = [part or "_" for part in _PLAIN.sub("_", name).split(".")]
        if hasattr(self, parts[0]) and not isinstance(getattr(self, parts[0]), torch.nn.Module):
            parts[0] = f"{parts[0]}_"
        owner: Any = self
        for part in parts:
            owner = getattr(owner, part, None)
            if isinstance(owner, torch.Tensor):  # `conv` is a tensor, and this is `conv.weight`
                return self._free_name("_".join(parts) + "_")
        return ".".join(parts) if owner is None else self._free_name("_".join(parts) + "_")

    def _add(self, call: Call) -> None:
        if call.op == "Constant":
            self._hold(call.outputs[0], call.constant())
        elif all(name in self._constants for name in call.inputs):
            for name, value in run(call, [self._constants[name] for name in call.inputs]).items():
                self._hold(name, value)
        else:
            self._calls.append(call)


def _read_by(model: onnx.ModelProto, places: dict[str, tuple[int, ...]]) -> set[str]:
    """The names that operators read at these places."""
    found = [(node, at) for node in model.graph.node for at in places.get(node.op_type, ()) if at < len(node.input)]
    return {node.input[at] for node, at in found}


def import_onnx(path: str | os.PathLike) -> Graph:
    """The Graph of an ONNX file, dynamic batch kept where the file leaves it open.

    The graph's outputs on random inputs have been compared with onnxruntime's.
    Raises UsageError for a file that is none, or of an opset out of range; CaptureError naming the ONNX operator that
    has no form here, or the output that differs.
    """
    name = Path(path).name
    model = _load(path)
    module = OnnxModule(model).eval()
    examples, is_dynamic = _examples(model, module._inputs, name)
    graph = _capture(module, examples, is_dynamic, name)
    _compare(graph, path, examples, name)
    return graph


def _capture(module: OnnxModule, examples: tuple[torch.Tensor, ...], is_dynamic: bool, name: str) -> Graph:
    """With an open batch where the module allows that."""
    try:
        return capture(module, examples, dynamic_batch=is_dynamic)
    except CaptureError:
        if is_dynamic:
            return _capture(module, examples, False, name)
        raise
    except Exception as error:
        raise CaptureError(name, f"PyTorch cannot run it: {first_line(error)}") from error


def _load(path: str | os.PathLike) -> onnx.ModelProto:
    name = Path(path).name
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:
        raise UsageError(name, f"it is no sound ONNX file: {first_line(error)}", "export it again") from error
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if versions.get("ai.onnx") not in OPSETS_IN:
        what = f"its opset is {versions.get('ai.onnx')}"
        raise UsageError(name, what, f"expected {OPSETS_IN[0]} to {OPSETS_IN[-1]}", "export it again, or convert it")
    unknown = sorted({node.op_type for node in model.graph.node if node.domain or node.op_type not in OPS})
    if unknown:
        what = f"{', '.join(map(repr, unknown))} {'has' if len(unknown) == 1 else 'have'} no form in PyTorch here"
        raise CaptureError(name, what, "capture the model that the file was made from")
    return model


def _examples(model: onnx.ModelProto, inputs: list[str], name: str) -> tuple[tuple[torch.Tensor, ...], bool]:
    """Random inputs of the file's shapes, an open first extent being 2, and whether all inputs have an open one."""
    values = {value.name: value.type.tensor_type for value in model.graph.input}
    examples, is_open = [], []
    for at, label in enumerate(inputs):
        extents = [dim.dim_value for dim in values[label].shape.dim]
        if any(extent == 0 for extent in extents[1:]):
            what = f"input '{label}' has open extents besides the first: {extents}"
            raise CaptureError(name, what, "fix them in the file: onnxruntime.tools.make_dynamic_shape_fixed does it")
        is_open.append(bool(extents) and extents[0] == 0)
        dtype = torch.from_numpy(np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(values[label].elem_type))).dtype
        shape = [extent or _BATCH for extent in extents]
        random = torch.randn(shape, generator=torch.Generator().manual_seed(at), dtype=torch.float64)
        examples.append(random.to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype))
    return tuple(examples), bool(is_open) and all(is_open)


def _compare(graph: Graph, path: str | os.PathLike, examples: tuple[torch.Tensor, ...], name: str) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    labels = [value.name for value in session.get_inputs()]
    wanted = session.run(None, dict(zip(labels, (x.numpy() for x in examples), strict=True)))
    with torch.no_grad():
        found = pytree.tree_leaves(graph(*examples))
    for value, expected, got in zip(session.get_outputs(), wanted, found, strict=True):
        expected, got = np.asarray(expected, np.float64), got.double().numpy()
        error = np.abs(expected - got).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)
        if expected.shape != got.shape or not error <= _TOLERANCE:
            what = f"output '{value.name}' differs from onnxruntime's by {error:.2g} of its largest value"
            raise CaptureError(name, what, f"at most {_TOLERANCE:g} is allowed")


def _tensor(tensor: onnx.TensorProto) -> torch.Tensor:
    return torch.from_numpy(numpy_helper.to_array(tensor).copy())
