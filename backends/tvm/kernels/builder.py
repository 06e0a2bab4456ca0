"""The one builder through which every kernel goes: it opens the PrimFunc and expresses loops.

Kernels are plain Python on top of TVM's IRBuilder: a Python loop is unrolled code, `Kernel.loop` a loop of the program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.script.ir_builder import IRBuilder

from ..arithmetic.tir import T
from ..lowering import OWN_KERNEL
from .shapes import Shape, Signature

Index = Any  # a Python int or a TIR expression: both take the same operators
Vector = Any  # a TIR expression of `lanes` values

# TVM leaves a "global" buffer below 1 kB on the stack, where LLVM promotes it to registers; a "local" one becomes a
# call of the workspace allocator per tile, and tagged scopes are merged into one such buffer.
REGISTER_SCOPE = "global"


def smallest(a: Index, b: Index) -> Index:
    """The lesser of two indices, folded when both are known."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else T.min(a, b)


def largest(a: Index, b: Index) -> Index:
    """The greater of two indices, folded when both are known."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else T.max(a, b)


def broadcast(value: Any, lanes: int) -> Vector:
    """A scalar, or a Python number as float32, in every lane."""
    return T.broadcast(T.float32(value) if isinstance(value, int | float) else value, lanes)


class View:
    """A buffer read and written by linear offset, counted from the start of one entry of its leading dimension."""

    def __init__(self, buffer: Any, dtype: str, entry: Index = 0):
        self.buffer, self.dtype, self.entry = buffer, dtype, entry

    def at(self, entry: Index) -> View:
        """The same buffer, with offsets counted from `entry` of the leading dimension."""
        return View(self.buffer, self.dtype, entry)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    def indices(self, last: Any) -> list[Any]:
        """Of an element by its linear offset."""
        rank = len(self.buffer.shape)
        return [last] if rank == 1 else [self.entry, *[0] * (rank - 2), last]

    def scalar(self, offset: Index) -> Any:
        """One element."""
        return self.buffer[tuple(self.indices(offset))]

    def vector(self, offset: Index, lanes: int) -> Vector:
        """`lanes` consecutive elements."""
        return self.buffer.vload(self.indices(offset), f"{self.dtype}x{lanes}")

    def store(self, offset: Index, value: Any, lanes: int = 1) -> None:
        """Write `lanes` consecutive elements."""
        last = offset if lanes == 1 else T.ramp(offset, 1, lanes)
        T.buffer_store(self.buffer, value, self.indices(last))


class Register:
    """One vector that lives in a register for the rest of the enclosing loop body."""

    def __init__(self, lanes: int, dtype: str):
        self._lanes, self.dtype = lanes, dtype
        self._view = View(T.alloc_buffer((lanes,), dtype, scope=REGISTER_SCOPE, layout=None), dtype)

    @property
    def value(self) -> Vector:
        return self._view.vector(0, self._lanes)

    @value.setter
    def value(self, value: Vector) -> None:
        self._view.store(0, value, self._lanes)

    def lane(self, index: int) -> Any:
        """One element of the vector."""
        return self._view.scalar(index)

    def set_lane(self, index: int, value: Any) -> None:
        self._view.store(index, value)


@dataclass(frozen=True)
class Parameters:
    """Views of a kernel's parameters; `batch` is the run-time size, if there is one."""

    sources: list[View]
    weights: list[View]
    residual: View | None
    target: View
    batch: Index


class Kernel:
    """A PrimFunc under construction::

    with Kernel() as kernel:
        source = kernel.argument("source", (64,))
        target = kernel.argument("target", (64,))
        with kernel.loop(4) as i:
            target.store(i * 16, source.vector(i * 16, 16), 16)
    kernel.prim_func
    """

    def __enter__(self) -> Kernel:
        self._builder: Any = IRBuilder()
        self._builder.__enter__()
        self._function = T.prim_func(s_tir=True)
        self._function.__enter__()
        T.func_name("main")
        # Without this LLVM must assume that every store may change every input, and keeps accumulators in memory.
        T.func_attr({"tirx.noalias": True, OWN_KERNEL: True})
        return self

    def __exit__(self, *exception: Any) -> None:
        self._function.__exit__(*exception)
        self._builder.__exit__(*exception)

    @property
    def prim_func(self) -> Any:
        return _with_root_block(self._builder.get().without_attr("global_symbol"))

    def parameters(self, signature: Signature) -> Parameters:
        """Declare all parameters of a kernel, in call order."""
        shapes = [*signature.inputs, *signature.weights, signature.residual, signature.output]
        symbolic = any(None in shape for shape in shapes if shape)
        batch = tirx.Var("batch", "int64") if symbolic else None

        def declare(name: str, shape: Shape, dtype: str) -> View:
            return self.argument(name, [batch if size is None else size for size in shape], dtype)

        kind, packed = signature.activation, zip(signature.weights, signature.weight_dtypes, strict=True)
        sources = [declare(f"source{i}", shape, kind) for i, shape in enumerate(signature.inputs)]
        weights = [declare(f"weight{i}", shape, dtype) for i, (shape, dtype) in enumerate(packed)]
        residual = declare("residual", signature.residual, kind) if signature.residual else None
        return Parameters(sources, weights, residual, declare("target", signature.output, signature.result), batch)

    def argument(self, name: str, shape: Sequence[Index], dtype: str = "float32") -> View:
        """The next parameter, a dense buffer."""
        return View(T.arg(name, T.buffer(tuple(shape), dtype, layout=None)), dtype)

    def workspace(self, size: int, dtype: str = "float32") -> View:
        """Heap memory of `size` elements for the rest of the enclosing loop body (of one thread)."""
        return View(T.alloc_buffer((size,), dtype, layout=None), dtype)

    def registers(self, count: int, lanes: int, dtype: str = "float32") -> list[Register]:
        return [Register(lanes, dtype) for _ in range(count)]

    @contextmanager
    def loop(self, extent: Index, start: Index = 0, *, parallel: bool = False) -> Iterator[Index]:
        """A loop over start .. start + extent - 1. One known pass is no loop: its index is `start` itself."""
        if isinstance(extent, int) and extent == 1:
            yield start
            return
        with (T.parallel if parallel else T.serial)(0, extent) as index:
            yield index if isinstance(start, int) and start == 0 else start + index

    @contextmanager
    def grid(self, *extents: Index, parallel: bool = False) -> Iterator[tuple[Index, ...]]:
        """Nested loops, the first outermost. In parallel they are one loop whose passes the threads share out."""
        with ExitStack() as stack:
            if not parallel:
                yield tuple(stack.enter_context(self.loop(extent)) for extent in extents)
                return
            known = [extent for extent in extents if not (isinstance(extent, int) and extent == 1)]
            rest = stack.enter_context(self.loop(prod(known), parallel=True))
            indices: list[Index] = []
            for i, extent in reversed(list(enumerate(extents))):
                if isinstance(extent, int) and extent == 1:
                    indices.append(0)
                    continue
                outermost = all(isinstance(e, int) and e == 1 for e in extents[:i])
                indices.append(rest if outermost else rest % extent)
                rest = rest // extent
            yield tuple(reversed(indices))

    def prefetch(self, view: View, offset: Index, *, write: bool = False, near: bool = False) -> None:
        """Ask for the cache line of an element in L2, or `near` in L1, to `write` it or to read.

        An offset past the end is harmless: nothing is read.
        """
        level, data = 3 if near else 2, 1
        address = T.address_of(view.buffer[tuple(view.indices(offset))])
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, int(write), level, data))

    def select(self, condition: Any, then: Index, otherwise: Index) -> Index:
        """An index that depends on a run-time condition."""
        return T.Select(condition, then, otherwise)

    def when(self, condition: Any) -> Any:
        """A branch of the program; a condition that Python already knows to be true is no branch."""
        if condition is True:
            return nullcontext()
        return _branch(T.bool(False) if condition is False else condition)


def _with_root_block(function: Any) -> Any:
    """TVM's graph passes take the body of a kernel for a block, and fail on a bare loop."""
    block = SBlock([], [], [], "root", function.body)
    return function.with_body(SBlockRealize([], True, block))


@contextmanager
def _branch(condition: Any) -> Iterator[None]:
    with T.If(condition), T.Then():
        yield
