"""Resizing: which pixels each output pixel reads, found by asking the float op itself."""

import torch
from torch import fx

from ....ir.integers.resizing import ONE
from .emitter import Emitter
from .quantized import Grid, Quantized


def nearest(emitter: Emitter, node: fx.Node, source: Quantized) -> fx.Node | str:
    """The integer form of upsample_nearest2d."""
    found = _positions(node, torch.float32)  # ATen computes its positions in float32
    if isinstance(found, str):
        return found
    rows, columns = (emitter.weight(f"{node.name}.{name}", p.to(torch.int32)) for name, p in found.items())
    return emitter.integers("upsample_nearest2d_int8", node, source.node, rows, columns)


def bilinear(emitter: Emitter, node: fx.Node, inputs: list[Quantized], grid: Grid) -> fx.Node | str:
    """The integer form of upsample_bilinear2d, with weights of 11 bits.

    Rounding a weight moves a value by at most 2**-12 of the difference of two neighbours, in each direction: an eighth
    of an input step in all.
    """
    (source,) = inputs
    found = _positions(node, torch.float64)
    if isinstance(found, str):
        return found
    tables = []
    for name, positions in found.items():
        steps = torch.round(positions * ONE).to(torch.int32)
        tables.append(emitter.weight(f"{node.name}.{name}", steps // ONE))
        tables.append(emitter.weight(f"{node.name}.{name}_weights", steps % ONE))
    acc = emitter.sums("upsample_bilinear2d_int32", node, source.node, *tables, source.grid.zero_point)
    factor = torch.tensor(source.grid.scale / grid.scale / ONE**2, dtype=torch.float32)
    return emitter.requantize(node, acc, factor, 0, grid)


def _positions(node: fx.Node, dtype: torch.dtype) -> dict[str, torch.Tensor] | str:
    """`rows` and `columns`: where in the input each output row and column lies, or why that is not known.

    A map whose pixels hold their own row number, resized, holds the positions.
    """
    source, *others = node.args
    height, width = source.meta["val"].shape[-2:]  # type: ignore[union-attr]
    if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt) or len(node.all_input_nodes) > 1:
        return "its input's height or width is not known"
    down, across = torch.arange(height, dtype=dtype), torch.arange(width, dtype=dtype)
    ramps = {"rows": down[:, None].expand(height, width), "columns": across.expand(height, width)}
    with torch.no_grad():
        found = {name: node.target(ramp[None, None], *others, **node.kwargs)[0, 0] for name, ramp in ramps.items()}  # type: ignore[operator]
    return {"rows": found["rows"][:, 0].clone(), "columns": found["columns"][0].clone()}
