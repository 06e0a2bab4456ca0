"""Graph: the fx graph that we own, its weights and its properties."""

import copy
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from . import call_form, shapes
from .errors import UsageError
from .ops import arguments, op_name
from .shapes import TensorSpec

# The argument that says "training" on the ops that behave differently in training.
TRAINING_ARGUMENT = {
    "batch_norm": "training",
    "dropout": "train",
    "feature_dropout": "train",
    "alpha_dropout": "train",
    "feature_alpha_dropout": "train",
    "rrelu": "training",
    "lstm": "train",
    "gru": "train",
    "rnn_tanh": "train",
    "rnn_relu": "train",
}


class GraphModule(fx.GraphModule):
    """An fx module whose `.train()` and `.eval()` work: they flip the training argument of batch norm and dropout."""

    def train(self, mode: bool = True) -> "GraphModule":
        for node in self.graph.nodes:
            argument = TRAINING_ARGUMENT.get(op_name(node))
            if argument and not _always_uses_batch_statistics(node):
                set_call_argument(node, argument, mode)
        self.recompile()
        return super().train(mode)  # type: ignore[return-value]


class Graph:
    """A model as ATen ops, in the form that torch.export gives before decomposition.

    module      an ordinary, trainable nn.Module; weights are get_attr nodes under their own names
    properties  what passes have established, e.g. {"no-batch-norm", "calibrated"}
    """

    def __init__(self, module: GraphModule, properties: set[str] | None = None):
        self.module = module
        self.properties = set(properties or ())

    @property
    def nodes(self) -> Iterator[fx.Node]:
        return iter(self.module.graph.nodes)

    @property
    def inputs(self) -> list[TensorSpec]:
        return shapes.input_specs(self.module.graph)

    @property
    def outputs(self) -> list[TensorSpec]:
        return shapes.output_specs(self.module.graph)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """All tensors that the graph reads, by name. Tied names hold the same tensor object."""
        names = dict.fromkeys(str(n.target) for n in self.nodes if n.op == "get_attr")
        found = {name: attribute(self.module, name) for name in names}
        return {name: t for name, t in found.items() if isinstance(t, torch.Tensor)}

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The weights that are parameters; of several tied names the first only."""
        unique = {id(t): (n, t) for n, t in reversed(self.weights.items()) if isinstance(t, torch.nn.Parameter)}
        return dict(reversed(unique.values()))

    def weight(self, which: fx.Node | str) -> torch.Tensor:
        """The tensor behind a get_attr node or a weight's name."""
        return attribute(self.module, str(which.target) if isinstance(which, fx.Node) else which)

    def weight_readers(self, name: str) -> list[fx.Node]:
        """The nodes that use this weight, under this name or a tied one."""
        tensor = self.weight(name)
        reads = [n for n in self.nodes if n.op == "get_attr" and self.weight(n) is tensor]
        return [user for node in reads for user in node.users]

    def node(self, name: str) -> fx.Node:
        """The node of this name. Raises KeyError where there is none."""
        return {n.name: n for n in self.nodes}[name]

    def calls(self, *names: str) -> list[fx.Node]:
        """The nodes that call one of the named ops, in order."""
        return [n for n in self.nodes if n.op == "call_function" and op_name(n) in names]

    def example_inputs(self, batch: int = 1, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Random inputs of the right shapes: normal floats, bytes, zeros for other integers, which may be places.

        Every symbolic extent is `batch`.
        """
        generator = torch.Generator().manual_seed(seed)
        values = []
        for node in shapes.input_nodes(self.module.graph):
            extents, dtype = [shapes.concrete(s, batch) for s in node.meta["val"].shape], node.meta["val"].dtype
            if dtype.is_floating_point:
                values.append(torch.randn(extents, generator=generator, dtype=torch.float64).to(dtype))
            elif dtype in (torch.int8, torch.uint8):
                ends = torch.iinfo(dtype)
                values.append(torch.randint(ends.min, ends.max + 1, extents, generator=generator, dtype=dtype))
            else:
                values.append(torch.zeros(extents, dtype=dtype))
        return tuple(values)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model in PyTorch, called as the original was.

        Raises UsageError for inputs of a wrong shape or nesting, and for another value of a captured constant.
        """
        args, kwargs = self.bind(args, kwargs)
        return self.module(*args, **kwargs)

    def bind(self, args: tuple, kwargs: dict[str, Any], *, least: int = 1) -> tuple[tuple, dict[str, Any]]:
        """The (args, kwargs) that `module` takes, from those of a call in the original's form.

        least   what a symbolic extent must be at least

        Raises UsageError as a call does.
        """
        structure = self.module.graph
        leaves = call_form.bind("the graph", structure, args, kwargs)
        given = dict(zip(structure.find_nodes(op="placeholder"), leaves, strict=True))
        tensors = tuple(given[n] for n in shapes.input_nodes(structure))
        shapes.check_inputs("the graph", self.inputs, tensors, least)
        for node, value in given.items():
            if shapes.is_constant_input(node) and value != node.meta["val"]:
                what = f"input '{node.name}' is {value!r}"
                raise UsageError("the graph", what, f"it was captured as {node.meta['val']!r}", "capture it again")
        return call_form.arrange(structure, leaves)

    def call_arguments(self, tensors: tuple[Any, ...]) -> tuple[tuple, dict[str, Any]]:
        """Tensors in the order of `inputs`, as the (args, kwargs) that `graph.module` takes."""
        remaining = iter(tensors)
        placeholders = self.module.graph.find_nodes(op="placeholder")
        leaves = [n.meta["val"] if shapes.is_constant_input(n) else next(remaining) for n in placeholders]
        return call_form.arrange(self.module.graph, leaves)

    def train(self, mode: bool = True) -> "Graph":
        self.module.train(mode)
        return self

    def eval(self) -> "Graph":
        return self.train(False)

    def copy(self) -> "Graph":
        """A graph of its own: no tensor is shared with this one, ties stay ties."""
        tensors: dict[int, Any] = {}
        root = {name: _clone(tensor, tensors) for name, tensor in named_tensors(self.module).items()}
        for node in self.nodes:
            if node.op == "get_attr" and node.target not in root:  # submodules of control flow
                root[str(node.target)] = copy.deepcopy(attribute(self.module, str(node.target)))
        transient = transient_buffers(self.module)
        twin = Graph(build_module(root, _copy_structure(self.module.graph), transient), self.properties)
        twin.module.training = self.module.training
        return twin

    def exported_program(self) -> torch.export.ExportedProgram:
        """An ordinary ExportedProgram, for Inductor, ExecuTorch, torchao and other tools. Dynamic batch survives."""
        structure = self.module.graph
        args, kwargs = self.call_arguments(self.example_inputs(batch=shapes.EXAMPLE_EXTENTS[0]))
        hints: dict[fx.Node, dict[int, Any]] = {
            node: {i: torch.export.Dim.AUTO for i, extent in enumerate(spec.shape) if isinstance(extent, str)}
            for node, spec in zip(shapes.input_nodes(structure), self.inputs, strict=True)
        }
        arg_hints, kwarg_hints = call_form.arrange(
            structure, [hints.get(node) for node in structure.find_nodes(op="placeholder")]
        )
        shape_hints = {**dict(zip(call_form.argument_names(structure), arg_hints, strict=False)), **kwarg_hints}
        return torch.export.export(self.module, args, kwargs, dynamic_shapes=shape_hints or None, strict=False)

    def save(self, path: str | os.PathLike) -> None:
        """Write the graph to one file: structure as JSON, weights as safetensors, no pickle."""
        from .archive import save

        save(self, path)

    @staticmethod
    def load(path: str | os.PathLike) -> "Graph":
        """Read a graph that `save` wrote. Runs no code of the file. Raises UsageError for a broken file."""
        from .archive import load

        return load(path)

    def text(self) -> str:
        """One op per line, with types; weights by name and shape."""
        from .text import text

        return text(self)

    __str__ = text


def attribute(module: torch.nn.Module, name: str) -> Any:
    """The parameter, buffer or submodule of a dotted name. Raises AttributeError where there is none."""
    *path, last = name.split(".")
    owner: Any = module
    for part in path:  # the table itself: an attribute is looked for in many other places first, and this runs often
        inner = owner._modules.get(part)
        owner = getattr(owner, part) if inner is None else inner
    value = owner._parameters.get(last)
    return getattr(owner, last) if value is None else value


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name, tied names included."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def transient_buffers(module: torch.nn.Module) -> frozenset[str]:
    """The names of buffers that a state_dict leaves out."""
    return frozenset(dict(module.named_buffers(remove_duplicate=False)).keys() - module.state_dict().keys())


def build_module(root: dict[str, Any], structure: fx.Graph, transient: frozenset[str] = frozenset()) -> GraphModule:
    """A module of our own class from weights by name and a structure. Weights that no node reads are kept too.

    transient: the names of buffers that a state_dict leaves out, so that the original's checkpoints load strictly.
    """
    module = GraphModule(root, structure, class_name="GraphModule")
    for name, value in root.items():
        set_attribute(module, name, value, persistent=name not in transient)
    return module


def set_attribute(module: torch.nn.Module, name: str, value: Any, *, persistent: bool | None = None) -> None:
    """Put a parameter, buffer or submodule under a dotted name, making the modules on the way.

    persistent: whether a state_dict holds a buffer; as it was before, else yes, when not given.
    """
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
    if isinstance(value, (torch.nn.Parameter, torch.nn.Module)):
        module._buffers.pop(last, None)
        setattr(module, last, value)
    else:
        module._parameters.pop(last, None)
        was_persistent = last not in module._non_persistent_buffers_set
        module.register_buffer(last, value, persistent=was_persistent if persistent is None else persistent)


def set_call_argument(node: fx.Node, name: str, value: Any) -> None:
    """Set one argument of an ATen call by its schema name."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _always_uses_batch_statistics(node: fx.Node) -> bool:
    """A batch norm that keeps no running statistics has no eval form."""
    return op_name(node) == "batch_norm" and arguments(node).running_mean is None


def _copy_structure(graph: fx.Graph) -> fx.Graph:
    twin = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    value = twin.graph_copy(graph, nodes)
    twin.output(value).meta = copy.copy(graph.output_node().meta)
    twin._codegen = copy.copy(graph._codegen)  # its pytree description is never changed
    return twin


def _clone(tensor: torch.Tensor, known: dict[int, torch.Tensor]) -> torch.Tensor:
    if id(tensor) not in known:
        data = tensor.detach().clone()
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        known[id(tensor)] = torch.nn.Parameter(data, tensor.requires_grad) if is_parameter else data
    return known[id(tensor)]
