"""The time of every kernel of a model, beside what this machine can do at most."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...ir.graph import Graph
from ..target import Target
from . import peak
from .build import compile_model
from .kernels import signature
from .kernels.work import Work, work
from .relax import to_relax
from .threads import set_threads

# node, kernel, seconds, multiply-accumulates, bytes, seconds of the bound
Row = tuple[str, str, float, int, int, float]


def kernel_times(
    graph: Graph, target: Target, inputs: Sequence[torch.Tensor], runs: int
) -> tuple[list[Row], dict[str, float]]:
    """Compile a graph for one core of this machine, and time every kernel call.

    Gives the rows in order of the calls, and the measured multiply-accumulates per second by arithmetic.
    """
    alone = replace(target, cores=1)
    model = to_relax(graph, alone)
    peaks: dict[str, float] = {}
    waiting: dict[str, deque[Any]] = {}
    for layer in model.layers:
        waiting.setdefault(layer.symbol, deque()).append(layer)
    set_threads(1)
    rows: list[Row] = []
    for symbol, seconds in compile_model(model, alone).kernel_seconds(inputs, runs):
        if symbol not in model.specs:
            rows.append((symbol, f"TVM: {symbol}", seconds, 0, 0, 0.0))
            continue
        spec, arithmetic = model.specs[symbol]
        if arithmetic.name not in peaks:
            peaks[arithmetic.name] = peak.multiply_accumulates(arithmetic, alone)
        done = work(spec, signature(spec, arithmetic), batch=inputs[0].shape[0])
        layer = waiting[symbol].popleft()
        rows.append((layer.node, layer.kernel, seconds, done.macs, done.bytes, _bound(done, peaks[arithmetic.name])))
    return rows, peaks


def _bound(done: Work, rate: float) -> float:
    return max(done.macs / rate, done.bytes / peak.bytes_copied(done.bytes))
