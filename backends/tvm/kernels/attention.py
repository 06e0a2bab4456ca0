"""Attention, softmax(scale * Q K^T + mask) V, a block of queries at a time: the scores of a block stay in the cache.

Keys and values of a head are packed into panels once; scores are one product, their softmax is taken in place without
the division, and the second product divides.

Source: Vaswani et al., Attention is all you need, NeurIPS 2017, arXiv:1706.03762; rows whose mask leaves nothing are
zero, as in PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arithmetic import Arithmetic
from ..arithmetic.tir import T
from .builder import Index, Kernel, Parameters, Vector, View, broadcast
from .epilogues import NO_EPILOGUE
from .output import Output
from .row_reductions import LOWEST, inverse, joined, share
from .run_time_packing import RightSide
from .run_time_panels import RunTimeProduct, in_blocks
from .shapes import Shape, Signature, round_up
from .tile import cut_blocks, is_parallel
from .tokens import Tokens


@dataclass(frozen=True)
class Attention:
    """Scaled dot-product attention in float32; groups of query heads share a head of keys and values.

    mask: the extents (batch, heads, queries) of an added mask, each 1 or whole; its rows are padded to whole vectors
    with -inf. batch=None is known at run time.
    """

    batch: int | None
    query: Tokens
    key: Tokens
    value: Tokens
    output: Tokens
    scale: float
    mask: tuple[int | None, int, int] | None = None


@dataclass(frozen=True)
class Plan:
    """rows: queries of a block; pitch: elements from one row of scores to the next."""

    rows: int
    pitch: int


def plan(spec: Attention, arithmetic: Arithmetic) -> Plan:
    """Half of the cache holds a block's scores, the rest of it keys and values."""
    pitch = round_up(spec.key.length, arithmetic.lanes)
    wanted = max(arithmetic.cache // (2 * 4 * pitch), 1)
    return Plan(cut_blocks(spec.query.length, -(-spec.query.length // wanted)).size, pitch)


def signature(spec: Attention, arithmetic: Arithmetic) -> Signature:
    operands: list[Shape] = [(spec.batch, *tokens.shape) for tokens in (spec.query, spec.key, spec.value)]
    if spec.mask is not None:
        operands.append((*spec.mask, plan(spec, arithmetic).pitch))
    return Signature(tuple(operands), (), None, (spec.batch, *spec.output.shape))


def pack(spec: Attention, arithmetic: Arithmetic) -> list[np.ndarray]:
    """Attention has no weights."""
    return []


def describe(spec: Attention, arithmetic: Arithmetic) -> str:
    return f"attention, blocks of {plan(spec, arithmetic).rows} queries, vectors of {arithmetic.lanes}"


def prim_func(spec: Attention, arithmetic: Arithmetic) -> Any:
    with Kernel() as kernel:
        given = kernel.parameters(signature(spec, arithmetic))
        _Nest(kernel, arithmetic, spec, given, plan(spec, arithmetic)).emit(spec.batch or given.batch)
    return kernel.prim_func


@dataclass(frozen=True)
class _Head:
    """Where one head of one image is, and its workspaces."""

    image: Index
    head: Index
    keys: View
    values: View
    scores: View
    inverses: View


@dataclass(frozen=True)
class _Nest:
    """The loops over images, heads and blocks of queries."""

    kernel: Kernel
    arithmetic: Arithmetic
    spec: Attention
    given: Parameters
    plan: Plan
    scores: RunTimeProduct = field(init=False)
    mixture: RunTimeProduct = field(init=False)

    def __post_init__(self) -> None:
        spec, rows = self.spec, self.plan.rows
        keys = RightSide(spec.key.length, spec.key.width, spec.key.pitch, 1)
        values = RightSide(spec.value.width, spec.value.length, 1, spec.value.pitch)
        object.__setattr__(self, "scores", RunTimeProduct(self.kernel, self.arithmetic, keys, rows))
        object.__setattr__(self, "mixture", RunTimeProduct(self.kernel, self.arithmetic, values, rows))

    def emit(self, images: Index) -> None:
        spec, rows = self.spec, self.plan.rows
        queries, heads = spec.query.length, spec.query.heads
        work = (spec.batch or 1) * heads * queries * spec.key.length * (spec.key.width + spec.value.width)
        parallel, blocks = is_parallel(self.arithmetic, work), queries // rows
        # Each part packs keys and values again: heads are cut only to keep the cores busy.
        parts = cut_blocks(blocks, -(-2 * self.arithmetic.cores // heads) if parallel else 1)
        with self.kernel.grid(images, heads, parts.count, parallel=parallel) as (image, head, part):
            here = self.head(image, head)
            self.pack(here)
            in_blocks(self.kernel, queries, rows, part, parts, lambda first, count: self.block(here, first, count))

    def head(self, image: Index, head: Index) -> _Head:
        workspace, rows = self.kernel.workspace, self.plan.rows
        keys, values = workspace(self.scores.packed_size), workspace(self.mixture.packed_size)
        return _Head(image, head, keys, values, workspace(rows * self.plan.pitch), workspace(rows))

    def pack(self, here: _Head) -> None:
        """Keys and values of the head that this head of queries shares with its group."""
        spec = self.spec
        shared = here.head // (spec.query.heads // spec.key.heads)
        _, key, value = (source.at(here.image) for source in self.given.sources[:3])
        self.scores.pack(key, spec.key.offset(shared, 0), here.keys)
        self.mixture.pack(value, spec.value.offset(shared, 0), here.values)

    def block(self, here: _Head, first: Index, rows: int) -> None:
        spec, pitch = self.spec, self.plan.pitch
        query, output = self.given.sources[0].at(here.image), self.output().at(here.image)

        def keep(row: Index, channel: Index, value: Vector, used: int) -> None:
            here.scores.store(row * pitch + channel, self.masked(here, first + row, channel, value, used), self.lanes)

        def write(row: Index, channel: Index, value: Vector, used: int) -> None:
            inverse = T.broadcast(here.inverses.scalar(row), self.lanes)
            output.write(spec.output.offset(here.head, first + row) + channel, value * inverse, channel, used)

        self.scores.multiply(rows, query, lambda row: spec.query.offset(here.head, first + row), here.keys, keep)
        with self.kernel.loop(rows) as row:
            self.softmax(here, row)
        self.mixture.multiply(rows, here.scores, lambda row: row * pitch, here.values, write)

    def masked(self, here: _Head, query: Index, channel: Index, value: Vector, used: int) -> Vector:
        """A vector of scores, scaled and masked; lanes behind the last key are -inf."""
        scaled, mask = value * broadcast(self.spec.scale, self.lanes), self.spec.mask
        if mask is not None:
            images, heads, queries = mask
            view = self.given.sources[3].at(0 if images == 1 else here.image)
            row = (0 if heads == 1 else here.head * queries) + (0 if queries == 1 else query)
            return scaled + view.vector(row * self.plan.pitch + channel, self.lanes)
        if not used:
            return scaled
        lanes = [T.float32(0.0 if lane < used else float("-inf")) for lane in range(self.lanes)]
        return scaled + T.Shuffle(lanes, list(range(self.lanes)))

    def softmax(self, here: _Head, row: Index) -> None:
        """exp(score - greatest score) in place, and one over their sum."""
        lanes, start = self.lanes, row * self.plan.pitch
        vectors = self.plan.pitch // lanes
        greatest, shift, total = self.kernel.registers(3, lanes)
        greatest.value = broadcast(LOWEST, lanes)
        with self.kernel.loop(vectors) as i:
            greatest.value = T.max(greatest.value, here.scores.vector(start + i * lanes, lanes))
        shift.value = T.broadcast(joined(greatest, lanes, T.max), lanes)
        total.value = broadcast(0.0, lanes)
        with self.kernel.loop(vectors) as i:
            place = start + i * lanes
            here.scores.store(place, share(here.scores.vector(place, lanes) - shift.value, lanes), lanes)
            total.value = total.value + here.scores.vector(place, lanes)
        here.inverses.store(row, inverse(joined(total, lanes, lambda a, b: a + b)))

    def output(self) -> Output:
        return Output(self.kernel, self.arithmetic, NO_EPILOGUE, self.given.target, None)

    @property
    def lanes(self) -> int:
        return self.arithmetic.lanes
