"""The final Relax `main` read as what it is: a list of kernel calls on inputs, constants and buffers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import tvm
from tvm import relax

from ...ir.errors import BuildError
from ...ir.shapes import TensorSpec
from ..manifest import ArraySpec

Kind = Literal["input", "constant", "buffer"]
# Checks of the caller's arrays, which the runner and the device make themselves, and the VM's reference counting.
WITHOUT_EFFECT = {
    "vm.builtin.check_tensor_info",
    "vm.builtin.match_shape",
    "relax.vm.kill_object",
    "relax.vm.alloc_storage",
    "relax.null_value",
}


@dataclass(frozen=True)
class Place:
    """Where an argument lives: the n-th input, constant or buffer."""

    kind: Kind
    index: int


@dataclass(frozen=True)
class Call:
    kernel: str
    layer: str
    arguments: tuple[Place, ...]


@dataclass(frozen=True)
class FlatMain:
    """inputs: specs; outputs: spec and place of each; buffers: bytes of each; constants: C-contiguous arrays."""

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[tuple[ArraySpec, Place], ...]
    calls: tuple[Call, ...]
    buffers: tuple[int, ...]
    constants: tuple[np.ndarray, ...]

    def with_edges(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> "FlatMain":
        """The same, whose specs say what integers stand for. Nothing is said of edges that are not given."""
        first = tuple(map(_affine, self.inputs, inputs)) if inputs else self.inputs
        results = [(_affine(own, edge), place) for (own, place), edge in zip(self.outputs, outputs, strict=False)]
        return replace(self, inputs=first, outputs=tuple(results) if outputs else self.outputs)


def _affine(own: ArraySpec, edge: TensorSpec) -> ArraySpec:
    return replace(own, scale=edge.scale, zero_point=edge.zero_point)


def read_main(module: tvm.IRModule, layers: Mapping[str, Sequence[str]] | None = None) -> FlatMain:
    """Read `main` of a lowered module. Raises BuildError for a symbolic shape or an operation without a C form."""
    reader = Reader({kernel: iter(names) for kernel, names in (layers or {}).items()})
    return reader.read(module["main"])


@dataclass
class Reader:
    """What was read so far. TVM's classes have their attributes from C++, so that its values are Any here."""

    layers: dict
    places: dict[Any, Place] = field(default_factory=dict)
    tuples: dict[Any, relax.Tuple] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)
    constants: dict[tuple[str, bytes], int] = field(default_factory=dict)
    arrays: list[np.ndarray] = field(default_factory=list)

    def read(self, function: Any) -> FlatMain:
        inputs = tuple(spec(p.name, p.ty) for p in function.params)
        self.places = {p: Place("input", i) for i, p in enumerate(function.params)}
        for block in function.body.blocks:
            for binding in block.bindings:
                self.bind(binding.var, binding.value)
        result: Any = self.tuples.get(function.body.body, function.body.body)
        results = list(result.fields) if isinstance(result, relax.Tuple) else [result]
        outputs = tuple((spec(f"output{i}", r.ty), self.place(r)) for i, r in enumerate(results))
        return FlatMain(inputs, outputs, tuple(self.calls), tuple(self.buffers), tuple(self.arrays))

    def bind(self, var: Any, value: Any) -> None:
        if isinstance(value, relax.Var):
            self.alias(var, value)
        elif isinstance(value, relax.Tuple):
            self.tuples[var] = value
        elif isinstance(value, relax.TupleGetItem):
            self.alias(var, self.tuples[value.tuple_value].fields[value.index])
        elif isinstance(value, relax.Call):
            self.bind_call(var, value)
        else:
            raise BuildError(var.name, f"{type(value).__name__} has no C form", "lower the module to kernel calls")

    def bind_call(self, var: Any, call: Any) -> None:
        if isinstance(call.op, tvm.ir.GlobalVar):
            kernel = call.op.name_hint
            layer = next(self.layers.get(kernel, iter(())), kernel)
            self.calls.append(Call(kernel, layer, tuple(self.place(a) for a in call.args)))
            return
        name = str(call.op.global_symbol) if isinstance(call.op, relax.ExternFunc) else call.op.name
        if name == "relax.vm.alloc_tensor":
            self.places[var] = Place("buffer", len(self.buffers))
            self.buffers.append(spec(var.name, var.ty).nbytes)
        elif name == "vm.builtin.reshape":
            self.alias(var, call.args[0])
        elif name not in WITHOUT_EFFECT:
            raise BuildError(var.name, f"'{name}' has no C form", "keep this op out of the C bundle's region")

    def alias(self, var: Any, value: Any) -> None:
        if value in self.tuples:
            self.tuples[var] = self.tuples[value]
        else:
            self.places[var] = self.place(value)

    def place(self, value: Any) -> Place:
        if isinstance(value, tvm.ir.GenericConst):
            return Place("constant", self.constant(value))
        if value not in self.places:
            raise BuildError("main", f"'{value}' is not an array", "a C program passes arrays only: static shapes")
        return self.places[value]

    def constant(self, value: Any) -> int:
        """The index of a constant; equal bytes are stored once, whatever their shape."""
        array = np.ascontiguousarray(value.value.numpy())
        index = self.constants.setdefault((str(array.dtype), array.tobytes()), len(self.arrays))
        if index == len(self.arrays):
            self.arrays.append(array)
        return index


def spec(name: str, ty: Any) -> ArraySpec:
    shape = []
    for extent in ty.shape:
        if not isinstance(extent, tvm.tirx.IntImm):
            what = f"extent '{extent}' is not constant"
            raise BuildError(name, what, "a C program has static shapes", "give a batch size")
        shape.append(int(extent))
    # Names go into C text, where a letter that is none of C's would do harm.
    return ArraySpec(re.sub(r"\W", "_", name, flags=re.ASCII), str(ty.dtype), tuple(shape))
