"""What needs a whole row before it can write the row's first number: layer norm and softmax over the last dim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from . import packing
from .activations import exponential
from .builder import Index, Kernel, Parameters, Register, Vector, View, broadcast
from .shapes import Signature, round_up
from .tile import is_parallel

PASSES = 64  # work of one element against a multiply-add
USUAL_ROWS = 64  # where their number is known at run time only
NOTHING = -87.0  # below it exp is taken for zero: less than float32's smallest normal number
LOWEST = -3.4028234663852886e38  # float32's, so that a row of -inf has a finite maximum


@dataclass(frozen=True)
class LayerNorm:
    """[rows, width], each row normalised, then scaled and shifted per column. rows=None is known at run time."""

    rows: int | None
    width: int
    epsilon: float


@dataclass(frozen=True)
class Softmax:
    """[rows, width], each row its own distribution."""

    rows: int | None
    width: int


RowReduction = LayerNorm | Softmax


def signature(spec: RowReduction, arithmetic: Arithmetic) -> Signature:
    whole, padded = (spec.rows, spec.width), (round_up(spec.width, arithmetic.lanes),)
    return Signature((whole,), (padded, padded) if isinstance(spec, LayerNorm) else (), None, whole)


def pack(
    spec: RowReduction, arithmetic: Arithmetic, weight: np.ndarray | None = None, bias: np.ndarray | None = None
) -> list[np.ndarray]:
    """weight and bias [width] of a layer norm, padded to whole vectors; ones and zeros for missing ones."""
    if not isinstance(spec, LayerNorm):
        return []
    scale = np.ones(spec.width, np.float32) if weight is None else weight
    return [packing.lanes_of(array, spec.width, arithmetic.lanes) for array in (scale, bias)]


def describe(spec: RowReduction, arithmetic: Arithmetic) -> str:
    name = "layer norm" if isinstance(spec, LayerNorm) else "softmax"
    return f"{name}, rows of {spec.width}, vectors of {arithmetic.lanes}"


def prim_func(spec: RowReduction, arithmetic: Arithmetic) -> Any:
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        rows: Any = spec.rows or given.batch
        parallel = is_parallel(arithmetic, (spec.rows or USUAL_ROWS) * PASSES * spec.width)
        with kernel.loop(rows, parallel=parallel) as index:
            row = _Row(kernel, arithmetic.lanes, spec.width, given, index)
            row.normalise(spec.epsilon) if isinstance(spec, LayerNorm) else row.distribute()
    return kernel.prim_func


def joined(register: Register, lanes: int, join: Callable[[Any, Any], Any]) -> Any:
    """One value of all lanes, by halves."""
    values = [register.lane(lane) for lane in range(lanes)]
    while len(values) > 1:
        values = [join(a, b) for a, b in zip(values[0::2], values[1::2], strict=True)]
    return values[0]


def share(distance: Vector, lanes: int) -> Vector:
    """exp of how far a score is below the greatest; exactly zero where it is out of float32's reach."""
    return T.Select(distance < broadcast(NOTHING, lanes), broadcast(0.0, lanes), exponential(distance, lanes))


def inverse(whole: Any) -> Any:
    """1 / whole; a row of which a mask leaves nothing sums to zero, and is zero."""
    return T.Select(whole == T.float32(0.0), T.float32(0.0), T.float32(1.0) / whole)


@dataclass(frozen=True)
class _Row:
    """One row; what is behind its last whole vector goes through a register, so that nothing behind it is touched."""

    kernel: Kernel
    lanes: int
    width: int
    given: Parameters
    index: Index

    def normalise(self, epsilon: float) -> None:
        """Mean, then the mean square of the distance from it: as exact as two passes are."""
        mean = self.spread(self.total(lambda value: value) / T.float32(self.width))
        squares = self.total(lambda value: (value - mean.value) * (value - mean.value))
        factor = self.spread(T.float32(1.0) / T.sqrt(squares / T.float32(self.width) + T.float32(epsilon)))
        scale, shift = self.given.weights

        def write(place: Index, value: Vector) -> Vector:
            own = scale.vector(place, self.lanes), shift.vector(place, self.lanes)
            return (value - mean.value) * factor.value * own[0] + own[1]

        self.store(write)

    def distribute(self) -> None:
        (greatest,) = self.kernel.registers(1, self.lanes)
        greatest.value = broadcast(LOWEST, self.lanes)

        def compare(place: Index, value: Vector, used: int) -> None:
            greatest.value = T.max(greatest.value, value)

        self.each(compare, filler=float("-inf"))
        top = self.spread(joined(greatest, self.lanes, T.max))
        # Shares are stored before they are divided: exp is dear.
        self.store(lambda place, value: share(value - top.value, self.lanes))
        result = self.given.target
        factor = self.spread(inverse(self.total(lambda value: value, result)))
        self.store(lambda place, value: value * factor.value, result)

    def total(self, term: Callable[[Vector], Vector], source: View | None = None) -> Any:
        """The sum over the row; lanes behind its end count nothing."""
        (sums,) = self.kernel.registers(1, self.lanes)
        sums.value = broadcast(0.0, self.lanes)

        def add(place: Index, value: Vector, used: int) -> None:
            own = term(value)
            if used:
                lanes = [T.float32(1.0 if lane < used else 0.0) for lane in range(self.lanes)]
                own = own * T.Shuffle(lanes, list(range(self.lanes)))
            sums.value = sums.value + own

        self.each(add, source)
        return joined(sums, self.lanes, lambda a, b: a + b)

    def store(self, function: Callable[[Index, Vector], Vector], source: View | None = None) -> None:
        target, start = self.given.target, self.index * self.width

        def write(place: Index, value: Vector, used: int) -> None:
            if not used:
                target.store(start + place, function(place, value), self.lanes)
                return
            (result,) = self.kernel.registers(1, self.lanes)
            result.value = function(place, value)
            for lane in range(used):
                target.store(start + place + lane, result.lane(lane))

        self.each(write, source)

    def each(
        self, visit: Callable[[Index, Vector, int], None], source: View | None = None, filler: float = 0.0
    ) -> None:
        """visit(place, vector, its used lanes or 0 for all) for the row's vectors; the others hold `filler`."""
        view, start = source or self.given.sources[0], self.index * self.width
        whole, rest = divmod(self.width, self.lanes)
        if whole:
            with self.kernel.loop(whole) as i:
                visit(i * self.lanes, view.vector(start + i * self.lanes, self.lanes), 0)
        if rest:
            (last,) = self.kernel.registers(1, self.lanes)
            last.value = broadcast(filler, self.lanes)
            for lane in range(rest):
                last.set_lane(lane, view.scalar(start + whole * self.lanes + lane))
            visit(whole * self.lanes, last.value, rest)

    def spread(self, value: Any) -> Register:
        """A number in every lane, computed once."""
        (register,) = self.kernel.registers(1, self.lanes)
        register.value = T.broadcast(value, self.lanes)
        return register
