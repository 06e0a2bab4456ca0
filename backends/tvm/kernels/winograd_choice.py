"""Where Winograd should be faster than the direct kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...tiles import NO_TILES
from ..arithmetic import Arithmetic
from .epilogues import Epilogue
from .shapes import DirectConv, Window, Winograd, round_up
from .winograd_costs import costs
from .winograd_plan import plan


def instead_of(conv: DirectConv, arithmetic: Arithmetic) -> Winograd | None:
    """The Winograd kernel that should be faster than the direct one; None where none is."""
    arithmetic = replace(arithmetic, tiles=NO_TILES)  # which kernel it is must not hang on what was measured of it
    ways = list(_ways(conv, arithmetic))
    if not ways:
        return None
    best = min(ways, key=lambda spec: _time(spec, arithmetic))
    return best if _time(best, arithmetic) < costs(arithmetic).worth_it * _direct_time(conv, arithmetic) else None


def _ways(conv: DirectConv, arithmetic: Arithmetic) -> Iterator[Winograd]:
    """The Winograd kernels of a convolution. A plain image is one for windows with a stride, of a known batch."""
    window = conv.window
    (kernel, across), (stride, step) = window.kernel, window.stride
    sizes = costs(arithmetic).windows.get((kernel, stride), ())
    if kernel != across or stride != step or window.dilation != (1, 1) or conv.groups > 1:
        return
    if min(window.output(conv.height, conv.width)) == 1 or (conv.image and (stride == 1 or conv.batch is None)):
        return
    assert isinstance(conv.epilogue, Epilogue)
    extents = conv.batch, conv.height, conv.width, conv.in_channels, conv.out_channels
    for size in sizes:
        tile = size - -(-kernel // stride) + 1
        spec = Winograd(*extents, window.padding, tile, conv.epilogue, kernel, stride, conv.image)
        yield spec
        whole = conv.batch is not None and conv.in_channels % arithmetic.lanes == 0
        if costs(arithmetic).weight is not None and (kernel, stride, tile) == (3, 1, 4) and whole:
            yield replace(spec, fresh=True)


def taps_on_image(window: Window, height: int, width: int) -> int:
    """How many taps of all outputs of a map read a pixel of it."""
    extents = zip((height, width), window.output(height, width), window.padding[::2], strict=True)
    rows, columns = (
        sum(0 <= place * step + tap * spread - before < extent for place in range(outputs) for tap in range(taps))
        for (extent, outputs, before), step, spread, taps in zip(
            extents, window.stride, window.dilation, window.kernel, strict=True
        )
    )
    return rows * columns


def _time(spec: Winograd, arithmetic: Arithmetic) -> float:
    """Estimated multiply-adds at peak rate: those done, or those in the time of reading the weights if it is longer."""
    p, cost = plan(spec, arithmetic), costs(arithmetic)
    products = p.blocks.pieces * p.depths * p.pitch_out
    spread = sum(phase.rows * phase.columns for phase in p.phases) * p.source.pitch
    transforms = p.blocks.pieces * cost.transform * (spread + p.places * p.pitch_out)
    weights, own = p.depths * p.pitch_out, spec.in_channels * p.pitch_out
    if spec.fresh:
        assert cost.weight is not None
        transforms += own * cost.weight
        weights = own * spec.kernel**2
    passes = p.blocks.count if weights * arithmetic.weight_bytes > arithmetic.cache else 1
    return max((products + transforms) / _threads(arithmetic), passes * _reading(weights, arithmetic))


def _direct_time(conv: DirectConv, arithmetic: Arithmetic) -> float:
    """The same estimate for the direct kernel, which reads weights that exceed the cache again for each image."""
    cost, (height, width) = costs(arithmetic), conv.window.output(conv.height, conv.width)
    every = height * width * conv.window.taps
    taps = every if cost.padding else taps_on_image(conv.window, conv.height, conv.width)
    weights = conv.in_channels * round_up(conv.out_channels, arithmetic.lanes)
    done = (conv.batch or 1) * taps * weights / _threads(arithmetic)
    weights *= conv.window.taps
    passes = (conv.batch or 1) if weights * arithmetic.weight_bytes > arithmetic.cache else 1
    return max(done, passes * _reading(weights, arithmetic))


def _reading(weights: int, arithmetic: Arithmetic) -> float:
    """Multiply-adds in the time of reading so many weights."""
    return weights * arithmetic.weight_bytes * costs(arithmetic).read * arithmetic.lanes


def _threads(arithmetic: Arithmetic) -> int:
    """Among which multiply-adds are shared out, while memory stays as fast; one where that was not measured."""
    return arithmetic.cores if costs(arithmetic).parts else 1
