"""What a quantized layer is multiplied with and what it should give: a bounded sample of rows from the data."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from ....ir.graph import Graph
from ....ir.ops import CONVS, arguments, op_name
from ...layers.patches import outputs_of, rows_of
from ...layers.side_by_side import SideBySide
from .reference import Layer

ROWS_BYTES = 2**28  # that the rows of one layer may take
MOMENTS_BYTES = 2**28  # that the second moments of one layer's inputs may take, in float64
CHUNK = 512  # rows that are in float64 at a time
HELD_OUT = 5  # every fifth sample is kept back to see whether what was learned holds for others


@dataclass(frozen=True)
class Rows:
    """A layer as a product of matrices: `inputs @ weight.T + bias` should be `wanted`.

    inputs  [groups, n, unknowns], as the quantized layer reads them
    wanted  [groups, n, outputs of a group], the float layer's output before its epilogue
    """

    inputs: torch.Tensor
    wanted: torch.Tensor

    def __len__(self) -> int:
        return self.inputs.shape[1]

    def slice(self, start: int, stop: int) -> "Rows":
        return Rows(self.inputs[:, start:stop], self.wanted[:, start:stop])


def second_moments(rows: Rows) -> torch.Tensor | None:
    """[groups, unknowns, unknowns]: the mean products of the inputs of a row; None where they would not fit."""
    groups, _, unknowns = rows.inputs.shape
    if 8 * groups * unknowns**2 > MOMENTS_BYTES:
        return None
    total = torch.zeros(groups, unknowns, unknowns, dtype=torch.float64)
    for part in rows.inputs.split(CHUNK, 1):  # in float64, without a copy of all rows in it
        part = part.double()
        total += part.mT @ part
    return total / len(rows)


def sample_rows(
    both: SideBySide, layer: Layer, samples: int, limit: int, generator: torch.Generator
) -> tuple[Rows, Rows | None]:
    """About `limit` rows in random order, in equal shares of samples at random positions; and those held out.

    samples  how many samples the data holds; of more than the bound allows rows, every second, third ... is used
    The second part is None where fewer than `HELD_OUT` samples are used.
    """
    parts: tuple[list[Rows], list[Rows]] = ([], [])
    allowed, seen = _allowed(both.graph, layer, limit), 0
    share, every = max(1, allowed // max(samples, 1)), -(-samples // allowed)
    holds = samples // every >= HELD_OUT
    for before, after in both.run_to(layer.twin, layer.product):
        x = both.after.read(after, arguments(layer.product).input)
        wanted = both.before.evaluate(before, layer.twin)
        for number, (one, result) in enumerate(_by_sample(both.graph, layer, x, wanted), start=seen):
            if number % every == 0:
                held = holds and number // every % HELD_OUT == HELD_OUT - 1
                parts[held].append(_some(both.graph, layer, one, result, share, generator))
        seen += len(x)
    learned, held_out = (_joined(found, generator) if found else None for found in parts)
    assert learned is not None
    return learned, held_out


def groups_of(product: fx.Node) -> int:
    return arguments(product).groups if op_name(product) in CONVS else 1


def _allowed(graph: Graph, layer: Layer, limit: int) -> int:
    """How many rows meet both bounds."""
    weight = graph.weight(layer.weight)
    wide = 4 * groups_of(layer.product) * weight[0].numel() + 4 * weight.shape[0]
    return max(1, min(limit, ROWS_BYTES // wide))


def _by_sample(
    graph: Graph, layer: Layer, x: torch.Tensor, wanted: torch.Tensor
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """The input and output of each sample, with its batch dim where the layer has one."""
    if op_name(layer.product) in CONVS and x.ndim < graph.weight(layer.weight).ndim:
        return [(x, wanted)]
    return zip(x.split(1), wanted.split(1), strict=True)


def _some(
    graph: Graph, layer: Layer, x: torch.Tensor, wanted: torch.Tensor, share: int, generator: torch.Generator
) -> Rows:
    """Rows of one sample at random positions, each position once."""
    weight, groups = graph.weight(layer.weight), groups_of(layer.product)
    positions = wanted.numel() // weight.shape[0]
    at = torch.randperm(positions, generator=generator)[:share]
    inputs = rows_of(layer.product, x, weight, at)
    return Rows(inputs, outputs_of(layer.product, wanted, weight, groups, at))


def _joined(parts: list[Rows], generator: torch.Generator) -> Rows:
    inputs, wanted = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("inputs", "wanted"))
    order = torch.randperm(inputs.shape[1], generator=generator)
    return Rows(inputs[:, order], wanted[:, order])
