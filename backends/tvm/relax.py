"""Graph -> one Relax function: kernels of our own as `call_tir`, every other op through TVM's torch importer."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import tvm
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from ...ir.cost import INTEGER_PRODUCTS
from ...ir.errors import BuildError, first_line
from ...ir.graph import Graph
from ...ir.integers.packed_weights import WEIGHT_ONLY
from ...ir.ops import describe, is_random, op_name, writes
from ..target import Target
from ..tiles import TileError
from .arithmetic import Arithmetic, Integers, fp16, fp32, integers
from .emit import (
    attention,
    batched_products,
    flat_integers,
    integer_kernels,
    packed_ops,
    plain_integers,
    products,
    row_reductions,
    transpositions,
    views,
    weight_only,
)
from .emit.fuse import Plan, plan
from .emit.fuse_integers import IntegerPair, IntegerSum
from .emit.importer_faults import is_converted_wrongly
from .emit.storage import BYTES, Storage
from .emit.tvm_ops import CONVERTERS
from .emit.values import Values
from .inference import freeze
from .kernels import describe as describe_kernel
from .kernels import pack, prim_func, signature
from .kernels.shapes import ToPacked, ToPlain

# Who may take a single call, in this order; what nobody takes is TVM's.
_EMITTERS = (
    integer_kernels.emit,
    packed_ops.emit,
    attention.emit,
    batched_products.emit,
    flat_integers.emit,
    row_reductions.emit,
    transpositions.emit,
    views.emit,
)
# TVM's pattern kind "opaque": its fusion leaves our kernels alone.
_OPAQUE = 8


class UnsupportedCall(BuildError):
    """A call that TVM's importer knows by name and cannot take as it is here."""

    def __init__(self, node: fx.Node, error: Exception):
        self.node = node
        super().__init__(describe(node), f"TVM cannot convert it: {first_line(error)}", "leave it in PyTorch")


@dataclass(frozen=True)
class Layer:
    """One kernel call for the report: the node it computes, the kernel's symbol, family and tile."""

    node: str
    symbol: str
    kernel: str


@dataclass(frozen=True)
class RelaxModel:
    """A model as Relax.

    layers        the calls of our own kernels in order
    others        ops left to TVM, with counts
    integers      products that compute in integers
    weight_bytes  of all constants, as the kernels read them
    specs         kernel symbol -> what it computes, and in which arithmetic
    """

    module: tvm.IRModule
    layers: tuple[Layer, ...]
    others: dict[str, int] = field(default_factory=dict)
    integers: int = 0
    weight_bytes: int = 0
    specs: dict[str, tuple[Any, Arithmetic]] = field(default_factory=dict)

    def layers_by_symbol(self) -> dict[str, list[str]]:
        """Kernel symbol -> the layers it computes, in call order."""
        table: dict[str, list[str]] = {}
        for layer in self.layers:
            table.setdefault(layer.symbol, []).append(layer.node)
        return table


def to_relax(graph: Graph, target: Target) -> RelaxModel:
    """Emit a frozen or trainable graph for a CPU target. A symbolic batch stays symbolic.

    Raises BuildError listing every op (with its source line) that neither we nor TVM can take.
    """
    frozen = freeze(graph)
    if missing := unsupported(frozen):
        listed = "; ".join(describe(node) for node in missing[:8])
        raise BuildError(target.name, f"{len(missing)} calls have no TVM form: {listed}", "leave them in PyTorch")
    return Emitter(frozen, target).emit()


def unsupported(graph: Graph, *, own_kernels: bool = True) -> list[fx.Node]:
    """The calls that TVM's importer (and, with `own_kernels`, our converters) cannot take, or would take wrongly."""
    known = ExportedProgramImporter().convert_map
    ours = {*CONVERTERS, *plain_integers.OPS, WEIGHT_ONLY} if own_kernels else set()
    calls = [node for node in graph.nodes if node.op == "call_function"]

    def is_taken(node: fx.Node) -> bool:
        return op_name(node) in ours or (importer_key(node) in known and not is_converted_wrongly(node))

    # TVM's importer takes in-place and random ops too, as if they were neither.
    return [node for node in calls if writes(node) or is_random(node) or not is_taken(node)]


def importer_key(node: fx.Node) -> str:
    """The name under which TVM's importer knows an op: `conv2d.default`."""
    return getattr(node.target, "__name__", str(node.target))


class Emitter:
    """One emission: the block builder, the values so far, and the kernels that were made."""

    def __init__(self, graph: Graph, target: Target):
        self.graph, self.target = graph, target
        # Half of the second-level cache for activations leaves the other half to weights.
        cache = target.l2_kib * 1024 // 2
        sizes = target.lanes, target.registers, target.cores, cache
        self.arithmetic = replace(fp32(target.triple, *sizes), tiles=target.tiles)
        half = fp16(target.features, *sizes)
        self.floats = {torch.float32: self.arithmetic}
        if half is not None:
            self.floats[torch.float16] = replace(half, tiles=target.tiles)
        bytes_ = integers(target.features, *sizes)
        self.integers = bytes_ and replace(bytes_, tiles=target.tiles)
        self.storage = Storage(self.integers.activation if self.integers else None)
        self.plan: Plan = plan(graph, self.floats)
        self.importer = ExportedProgramImporter()
        self.builder = self.importer.block_builder = relax.BlockBuilder()
        self.values = self.importer.env = Values(self._plain_from_packed, self._packed_from_plain)
        self.kernels: dict[Any, relax.GlobalVar] = {}
        self.layers: list[Layer] = []
        self.specs: dict[str, tuple[Any, Arithmetic]] = {}
        self.others: Counter[str] = Counter()
        self.constants: dict[int, relax.Expr] = {}
        self.extents: dict[str, tvm.tirx.Var] = {}
        self.weight_bytes = 0

    def emit(self) -> RelaxModel:
        inputs = self._inputs()
        with self.builder.function("main", params=list(inputs.values())):
            with self.builder.dataflow():
                self.values.update({node: self._shifted(node, value, 1) for node, value in inputs.items()})
                for node in self.graph.nodes:
                    if node.op == "get_attr" and not weight_only.is_packed(node):
                        self.values[node] = self._weight(node)
                    elif node.op == "call_function" and node not in self.plan.absorbed:
                        self._call(node)
                result = self.builder.emit_output(self._result())
            self.builder.emit_func_output(result)
        module = relax.transform.DeadCodeElimination()(self.builder.get())
        integers = len(self.graph.calls(*INTEGER_PRODUCTS))
        return RelaxModel(module, tuple(self.layers), dict(self.others), integers, self.weight_bytes, self.specs)

    def kernel(
        self,
        node: fx.Node,
        spec: Any,
        inputs: list[relax.Expr],
        weights: list[Any],
        arithmetic: Arithmetic | None = None,
    ) -> relax.Expr:
        """Emit one call of our own kernel. Equal specs of one arithmetic share one PrimFunc.

        weights     arrays, or values that are computed at run time in the form of such
        arithmetic  that of the node's dtype if none is given
        """
        arithmetic = arithmetic or self.arithmetic_of(node)
        key, shapes = (arithmetic.name, spec), signature(spec, arithmetic)
        if key not in self.kernels:
            function = prim_func(spec, arithmetic).with_attr("op_pattern", _OPAQUE)
            name = f"{type(spec).__name__.lower()}_{len(self.kernels)}"
            self.kernels[key] = self.builder.add_func(function.with_attr("global_symbol", name), name)
        symbol, shape = self.kernels[key], shapes.output
        batch = inputs[0].ty.shape[0] if shape[0] is None else shape[0]
        kind = relax.TensorType([batch, *shape[1:]], shapes.result)
        activations, rest = inputs[: len(shapes.inputs)], inputs[len(shapes.inputs) :]
        held = [w if isinstance(w, relax.Expr) else self.constant(w) for w in weights]
        call = relax.call_tir(symbol, [*activations, *held, *rest], kind)
        kind_of = "int8 " if isinstance(arithmetic, Integers) else "fp16 " if arithmetic.name == "fp16" else ""
        self.specs[symbol.name_hint] = spec, arithmetic
        self.layers.append(Layer(node.name, symbol.name_hint, kind_of + describe_kernel(spec, arithmetic)))
        return self.builder.emit(call, node.name)

    def product_kernel(
        self,
        node: fx.Node,
        spec: Any,
        inputs: list[relax.Expr],
        tensors: list[Any],
        arithmetic: Arithmetic | None = None,
    ) -> relax.Expr:
        """A kernel with weights, which are packed for it."""
        return self.kernel(node, spec, inputs, pack(spec, arithmetic or self.arithmetic_of(node), *tensors), arithmetic)

    def arithmetic_of(self, node: fx.Node) -> Arithmetic:
        """The arithmetic of a node's dtype among those of floats, float32 where it is none of them."""
        value = node.meta.get("val")
        return self.floats.get(getattr(value, "dtype", torch.float32), self.arithmetic)

    def array(self, node: fx.Node) -> np.ndarray:
        """The numbers of a weight node."""
        return self.graph.weight(node).detach().numpy()

    def number(self, node: fx.Node) -> float:
        """The only number of a weight node."""
        return float(self.graph.weight(node))

    def constant(self, array: np.ndarray) -> relax.Expr:
        self.weight_bytes += array.nbytes
        return relax.const(np.ascontiguousarray(array))

    def batch(self, node: fx.Node) -> int | None:
        """The leading extent of a node's value, None when it is symbolic."""
        extent = node.meta["val"].shape[0]
        return None if isinstance(extent, torch.SymInt) else int(extent)

    def packed_extents(self, node: fx.Node) -> tuple[int | None, int, int, int] | None:
        """(batch, height, width, channels) of a 4-d value with a fixed image size, None for others."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.dtype not in (*self.floats, *BYTES):
            return None
        if any(isinstance(s, torch.SymInt) for s in value.shape[1:]):
            return None
        _, channels, height, width = map(int, (0, *value.shape[1:]))
        return self.batch(node), height, width, channels

    def without_pixels(self, packed: relax.Expr, channels: int) -> relax.Expr:
        """[N, C]: a packed value of one pixel without its padding lanes and its two extents of 1."""
        self.others["squeeze"] += 1
        real = relax.op.strided_slice(packed, axes=[3], begin=[0], end=[channels])
        return self.builder.emit(relax.op.squeeze(self.builder.emit(real), [1, 2]))

    def _call(self, node: fx.Node) -> None:
        try:
            if isinstance(kernel := self.plan.kernels.get(node), IntegerSum | IntegerPair):
                integer_kernels.emit_fused(self, kernel)
            elif kernel is not None:
                products.emit(self, kernel)
            elif any(emit(self, node) for emit in _EMITTERS):
                return
            elif plain_integers.computes(node):
                self.others[op_name(node)] += 1
                self.values[node] = plain_integers.emit(self, node)
            else:
                self.others[op_name(node)] += 1
                self.values[node] = self.convert(node)
        except (BuildError, TileError):
            raise
        except Exception as error:
            raise UnsupportedCall(node, error) from error

    def convert(self, node: fx.Node) -> Any:
        """The node by its converter, on plain values."""
        if op_name(node) in CONVERTERS:
            return CONVERTERS[op_name(node)](self, node, self.values.__getitem__)
        return self.importer.convert_map[importer_key(node)](node)

    def _inputs(self) -> dict[fx.Node, relax.Var]:
        made = {}
        for node, spec in zip(self.graph.module.graph.find_nodes(op="placeholder"), self.graph.inputs, strict=True):
            shape = [self._extent(s) for s in spec.shape]
            made[node] = relax.Var(spec.name, relax.TensorType(shape, str(spec.dtype).removeprefix("torch.")))
        return made

    def _extent(self, extent: int | str) -> Any:
        if isinstance(extent, int):
            return extent
        if not extent.isidentifier():
            raise BuildError(self.target.name, f"an input has the extent {extent}", "fix the batch before building")
        return self.extents.setdefault(extent, tvm.tirx.Var(extent, "int64"))

    def _weight(self, node: fx.Node) -> relax.Expr:
        tensor = self.graph.weight(node)
        if id(tensor) not in self.constants:
            self.constants[id(tensor)] = relax.const(tensor.detach().contiguous().numpy())
        return self.constants[id(tensor)]

    def _result(self) -> relax.Expr:
        (output,) = self.graph.module.graph.find_nodes(op="output")
        values = [self._shifted(node, self.values[node], -1) for node in _leaves(output.args[0])]
        return values[0] if len(values) == 1 else relax.Tuple(values)

    def _shifted(self, node: fx.Node, value: relax.Expr, sign: int) -> relax.Expr:
        """Bytes as the graph has them turned into bytes as they lie in memory (sign 1), or back (-1)."""
        dtype = node.meta["val"].dtype if isinstance(node.meta.get("val"), torch.Tensor) else None
        if dtype not in BYTES or not (shift := self.storage.shift(dtype)):
            return value
        wanted = self.storage.of(dtype) if sign > 0 else str(dtype).removeprefix("torch.")
        moved = relax.op.add(relax.op.astype(value, "int32"), relax.const(sign * shift, "int32"))
        return self.builder.emit(relax.op.astype(moved, wanted))

    def _plain_from_packed(self, node: fx.Node, value: relax.Expr) -> relax.Expr:
        return self._converted(ToPlain, node, value)

    def _packed_from_plain(self, node: fx.Node, value: relax.Expr) -> relax.Expr:
        return self._converted(ToPacked, node, value)

    def _converted(self, layout: type[ToPlain] | type[ToPacked], node: fx.Node, value: relax.Expr) -> relax.Expr:
        _, channels, height, width = node.meta["val"].shape
        spec = layout(self.batch(node), int(height), int(width), int(channels))
        return self.kernel(node, spec, [value], [], self.integers if node.meta["val"].dtype in BYTES else None)


def _leaves(value: Any) -> Iterator[fx.Node]:
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
