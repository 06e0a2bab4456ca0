"""The graph that dynamo hands over, as a module of its own: weights frozen under their names, sizes read off inputs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.traceback import preserve_node_meta

from ...ir.graph import set_attribute

# dynamo names a weight by the way to it: L['self']._modules['conv1']._parameters['weight'].
_STEP = re.compile(r"\['([^']+)'\]|\.(\w+)|\[(\d+)\]")
_CONTAINERS = {"_modules", "_parameters", "_buffers"}


@dataclass(frozen=True)
class Slots:
    """What the inputs of dynamo's graph are, by position.

    weights  position -> name: parameters, buffers and tensors that belong to a module
    tensors  positions of the model's own inputs
    sizes    position of a size -> (position of a tensor, dim) that has it
    numbers  positions of numbers that no shape tells; dynamo wraps floats in tensors
    is_dynamic  inputs of other shapes, or other numbers, may come
    """

    weights: dict[int, str]
    tensors: tuple[int, ...]
    sizes: dict[int, tuple[int, int]]
    numbers: tuple[int, ...]
    is_dynamic: bool

    @staticmethod
    def of(module: fx.GraphModule) -> "Slots":
        placeholders = module.graph.find_nodes(op="placeholder")
        values = [_value(node) for node in placeholders]
        weights = {i: _weight_name(node, i) for i, node in enumerate(placeholders) if _is_weight(node, values[i])}
        tensors = tuple(i for i, v in enumerate(values) if isinstance(v, torch.Tensor) and i not in weights)
        extents = {
            str(extent): (i, dim)
            for i in reversed(tensors)
            for dim, extent in enumerate(values[i].shape)
            if isinstance(extent, torch.SymInt)
        }
        others = [i for i, v in enumerate(values) if not isinstance(v, torch.Tensor)]
        sizes = {i: extents[str(values[i])] for i in others if str(values[i]) in extents}
        return Slots(weights, tensors, sizes, tuple(i for i in others if i not in sizes), bool(extents or others))

    def number_values(self, args: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(args[i].item() if isinstance(args[i], torch.Tensor) else args[i] for i in self.numbers)


class Frozen(torch.nn.Module):
    """dynamo's graph as a function of its tensors alone, ready for torch.export."""

    def __init__(self, module: fx.GraphModule, slots: Slots, args: Sequence[Any]):
        super().__init__()
        self._held = (module, slots)  # in a tuple, so that the graph's own attributes keep their place
        self._numbers = dict(zip(slots.numbers, slots.number_values(args), strict=True))
        for position, name in slots.weights.items():
            set_attribute(self, name, args[position])

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> Any:
        module, slots = self._held
        values = dict(zip(slots.tensors, inputs, strict=True)) | self._numbers
        values |= {i: self.get_parameter_or_buffer(name) for i, name in slots.weights.items()}
        values |= {i: values[position].shape[dim] for i, (position, dim) in slots.sizes.items()}
        # Running node by node under `preserve_node_meta` hands the user's source lines on to torch.export.
        with preserve_node_meta():
            return _Interpreter(module).run(*(values[i] for i in sorted(values)))

    def get_parameter_or_buffer(self, name: str) -> torch.Tensor:
        path, _, last = name.rpartition(".")
        return getattr(self.get_submodule(path), last)


class _Interpreter(fx.Interpreter):
    def call_method(self, target: Any, args: tuple, kwargs: dict) -> Any:
        if target == "item" and not isinstance(args[0], torch.Tensor):
            return args[0]
        return super().call_method(target, args, kwargs)


def returns_tensors(module: fx.GraphModule) -> bool:
    """True if every output of dynamo's graph is a tensor, and there is one."""
    (output,) = module.graph.find_nodes(op="output")
    values: Any = output.args[0]
    leaves = values if isinstance(values, (tuple, list)) else (values,)
    return bool(leaves) and all(
        isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("example_value"), torch.Tensor) for leaf in leaves
    )


def name_source(node: fx.Node) -> None:
    """Where the user's code has no line of its own (an nn.Sequential), let the module's name stand for it."""
    if __file__ in (node.meta.get("stack_trace") or ""):
        del node.meta["stack_trace"]
        modules = list((node.meta.get("nn_module_stack") or {}).values())
        if modules:
            node.meta["source"] = f"module '{'.'.join(_path(modules[-1][0]))}'"


def _value(node: fx.Node) -> Any:
    """The example value; None for a number in a tensor."""
    return None if getattr(node.meta.get("grapharg"), "pass_arg_as_tensor", False) else node.meta.get("example_value")


def _is_weight(node: fx.Node, value: Any) -> bool:
    is_static = "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {})
    return isinstance(value, torch.nn.Parameter) or (isinstance(value, torch.Tensor) and is_static)


def _weight_name(node: fx.Node, position: int) -> str:
    """`layer1.0.conv1.weight`, or a numbered name where the way to the tensor is no chain of modules."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    path = _path(str(getattr(source, "name", "")))
    is_free = path and not any(hasattr(torch.nn.Module, step) or step.startswith("_held") for step in path)
    return ".".join(step.replace(".", "_") for step in path) if is_free else f"weight_{position}"


def _path(name: str) -> list[str]:
    """The steps from the outermost module, in dynamo's name of something inside it."""
    steps = [next(filter(None, match.groups())) for match in _STEP.finditer(name)]
    return [step for step in steps[1:] if step not in _CONTAINERS]
