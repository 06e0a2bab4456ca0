"""A graph as one file: `graph.json` for the structure, `weights.safetensors` for the tensors. Loading runs no code."""

import json
import math
import operator
import os
import zipfile
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from . import call_form, shapes
from .errors import UsageError, first_line
from .files import write_aside, write_member
from .graph import Graph, build_module, named_tensors
from .ops import has_schema, qualified_name
from .shapes import TensorSpec

FORMAT = 1
MAGIC_MEMBER = "planish-graph.json"
WEIGHTS_MEMBER = "weights.safetensors"

# Python functions that shape arithmetic leaves in a graph; a file may name nothing else outside torch.ops.
_PYTHON_CALLS = {
    qualified_name(f): f
    for f in (
        operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod,
        operator.neg, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.pow,
        math.floor, math.ceil, math.trunc, max, min, torch.sym_int, torch.sym_float, torch.sym_max, torch.sym_min,
        torch.sym_not, torch.sym_ite, torch.sym_sum,
    )
}  # fmt: skip

_TORCH_CONSTANTS = (torch.dtype, torch.memory_format, torch.layout)


def save(graph: Graph, path: str | os.PathLike) -> None:
    """Write `graph` to `path`, replacing it in one step. The same graph gives the same bytes."""
    document, tensors = contents(graph)
    document["call"] = encode_call_form(graph.module.graph)
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    with write_aside(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        write_member(archive, MAGIC_MEMBER, json.dumps(document, indent=1).encode())
        write_member(archive, WEIGHTS_MEMBER, safetensors.torch.save(tensors))


def contents(graph: Graph) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """All that decides what a graph computes: its structure as JSON-able values, and its weights, tied ones once.

    How inputs and outputs are nested is not in it.

    Raises UsageError for a call or an argument that has no form in JSON.
    """
    owners: dict[int, str] = {}
    ties: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in graph.weights.items():
        owner = owners.setdefault(id(tensor), name)
        if owner == name:
            tensors[name] = tensor
    for name, tensor in named_tensors(graph.module).items():  # a tied name that no node uses is still in checkpoints
        if owners.get(id(tensor), name) != name:
            ties[name] = owners[id(tensor)]
    document = {
        "format": FORMAT,
        "properties": sorted(graph.properties),
        "parameters": {n: t.requires_grad for n, t in graph.weights.items() if isinstance(t, torch.nn.Parameter)},
        "ties": ties,
        "inputs": [{"dtype": str(s.dtype), "shape": list(s.shape)} for s in graph.inputs],
        "constants": {n.name: encode(n.meta["val"]) for n in graph.nodes if shapes.is_constant_input(n)},
        "nodes": [_encode_node(node) for node in graph.nodes],
    }
    return document, tensors


def load(path: str | os.PathLike) -> Graph:
    """Read a graph. Raises UsageError saying what is wrong with a broken, foreign or newer file."""
    try:
        with zipfile.ZipFile(path) as archive:
            document = json.loads(archive.read(MAGIC_MEMBER))
            tensors: dict[str, Any] = safetensors.torch.load(archive.read(WEIGHTS_MEMBER))
    except FileNotFoundError:
        raise UsageError("load", f"there is no file '{path}'") from None
    except Exception as error:
        raise UsageError("load", f"'{path}' is not a readable graph: {first_line(error)}") from error
    form = document.get("format") if isinstance(document, dict) else None
    if form != FORMAT:
        raise UsageError("load", f"'{path}' has format {form}", f"this version reads {FORMAT}")
    try:
        return build(document, tensors)
    except UsageError:
        raise
    except Exception as error:
        what = f"'{path}' is not a valid graph: {type(error).__name__}: {first_line(error)}"
        raise UsageError("load", what, "it was edited or damaged; save it again") from error


def build(document: dict[str, Any], tensors: dict[str, Any], transient: frozenset[str] = frozenset()) -> Graph:
    """The graph of `contents`, with the call form in the document. transient: buffers that a state_dict leaves out."""
    for name, requires_grad in document["parameters"].items():
        if name in tensors:
            tensors[name] = torch.nn.Parameter(tensors[name], requires_grad)
    for name, owner in document["ties"].items():
        tensors[name] = tensors[owner]
    structure = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in document["nodes"]:
        if entry["op"] == "get_attr" and entry["target"] not in tensors:
            raise UsageError("load", f"node '{entry['name']}' reads '{entry['target']}'", "the file has no such weight")
        nodes[entry["name"]] = node = _decode_node(structure, entry, nodes)
        if node.op == "placeholder" and node.name in document["constants"]:
            node.meta["val"] = decode(document["constants"][node.name], {})
    _decode_call_form(structure, document["call"])
    structure.lint()
    graph = Graph(build_module(tensors, structure, transient), set(document["properties"]))
    names = [n.name for n in shapes.input_nodes(structure)]
    specs = [
        TensorSpec(name, decode({"torch": spec["dtype"]}, {}), tuple(spec["shape"]))
        for name, spec in zip(names, document["inputs"], strict=True)
    ]
    shapes.propagate(graph.module, specs)
    graph.module.training = False
    return graph


def _encode_node(node: fx.Node) -> dict[str, Any]:
    target = qualified_name(node.target) if node.op == "call_function" else str(node.target)
    if node.op == "call_function" and not has_schema(node) and target not in _PYTHON_CALLS:
        raise UsageError("save", f"node '{node.name}' calls {target}", "only torch.ops and shape arithmetic are saved")
    entry = {"name": node.name, "op": node.op, "target": target, "args": encode(node.args)}
    if node.kwargs:
        entry["kwargs"] = encode(dict(node.kwargs))
    if "source" in node.meta:
        entry["source"] = node.meta["source"]
    if shapes.AFFINE in node.meta:
        entry[shapes.AFFINE] = list(node.meta[shapes.AFFINE])
    return entry


def _decode_node(structure: fx.Graph, entry: dict[str, Any], nodes: dict[str, fx.Node]) -> fx.Node:
    target: Any = entry["target"]
    if entry["op"] == "call_function":
        target = _resolve(target)
    elif entry["op"] not in ("placeholder", "get_attr", "output"):
        raise UsageError("load", f"node '{entry['name']}' is a '{entry['op']}'", "expected a call, input or weight")
    args = decode(entry["args"], nodes)
    kwargs = decode(entry.get("kwargs", {}), nodes)
    node = structure.create_node(entry["op"], target, args, kwargs, name=entry["name"])
    if "source" in entry:
        node.meta["source"] = entry["source"]
    if shapes.AFFINE in entry:
        scale, zero_point = entry[shapes.AFFINE]
        node.meta[shapes.AFFINE] = float(scale), int(zero_point)
    return node


def _resolve(name: str) -> Callable:
    if name in _PYTHON_CALLS:
        return _PYTHON_CALLS[name]
    try:
        namespace, op, overload = name.split(".")
        target = getattr(getattr(getattr(torch.ops, namespace), op), overload)
    except (ValueError, AttributeError, RuntimeError):
        target = None
    if not isinstance(target, torch._ops.OpOverload):
        raise UsageError("load", f"unknown op '{name}'", "expected an op of torch.ops; import the package that adds it")
    return target


def encode(value: Any) -> Any:
    """A plain value as JSON: tuples stay tuples, nodes are their names. Raises UsageError for one that has no form."""
    match value:
        case fx.Node():
            return {"node": value.name}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case tuple():
            return {"tuple": [encode(v) for v in value]}
        case list():
            return [encode(v) for v in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {k: encode(v) for k, v in value.items()}}
        case slice():
            return {"slice": [encode(v) for v in (value.start, value.stop, value.step)]}
        case torch.device():
            return {"device": str(value)}
        case torch.dtype() | torch.memory_format() | torch.layout():
            return {"torch": str(value)}
    raise UsageError("save", f"an argument is a {type(value).__name__}", "only plain values can be saved")


def decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    """The value that `encode` wrote. Raises UsageError for a kind that it does not know."""
    if isinstance(value, list):
        return [decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    if not value:
        return {}
    ((kind, inner),) = value.items()
    match kind:
        case "node":
            return nodes[inner]
        case "float":
            return float(inner)
        case "tuple":
            return tuple(decode(v, nodes) for v in inner)
        case "dict":
            return {k: decode(v, nodes) for k, v in inner.items()}
        case "slice":
            return slice(*(decode(v, nodes) for v in inner))
        case "device":
            return torch.device(inner)
        case "torch":
            return _torch_constant(inner)
    raise UsageError("load", f"an argument has the unknown kind '{kind}'", "it was edited or is of a newer version")


def _torch_constant(name: str) -> Any:
    constant = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(constant, _TORCH_CONSTANTS):
        raise UsageError("load", f"'{name}' is no dtype, layout or memory format")
    return constant


def encode_call_form(structure: fx.Graph) -> dict[str, Any]:
    """The nesting of inputs and outputs, written as a value whose leaves are numbers.

    torch's own text form of it is not used: reading that one imports the modules that it names.
    """
    info = structure._codegen.pytree_info  # type: ignore[attr-defined]
    return {
        "arguments": list(info.orig_args),
        "in": encode_nesting(info.in_spec),
        "out": encode_nesting(info.out_spec) if info.out_spec is not None else None,
    }


def encode_nesting(spec: pytree.TreeSpec) -> Any:
    """A nesting as a value whose leaves are numbers. Raises UsageError for containers of other classes."""
    for part in _containers(spec):
        if part.type not in (tuple, list, dict):
            what = f"an input or output is a {part.type.__name__}"
            raise UsageError("save", what, "tuples, lists and dicts can be saved; wrap the model to use them")
    return encode(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))


def _containers(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    if spec.is_leaf():
        return []
    return [spec, *(part for child in spec.children() for part in _containers(child))]


def _decode_call_form(structure: fx.Graph, call: dict[str, Any]) -> None:
    out_spec = pytree.tree_structure(decode(call["out"], {})) if call["out"] is not None else None
    info = _PyTreeInfo(call["arguments"], pytree.tree_structure(decode(call["in"], {})), out_spec)
    structure.set_codegen(_PyTreeCodeGen(info))
    placeholders = structure.find_nodes(op="placeholder")
    if call_form.input_spec(structure).num_leaves != len(placeholders):
        raise UsageError("load", f"{len(placeholders)} inputs do not fit the call form", "it was edited or damaged")
