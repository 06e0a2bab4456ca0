"""Where Winograd should be faster than the direct kernel."""

from __future__ import annotations

from dataclasses import replace

from ...tiles import NO_TILES
from ..arithmetic import Arithmetic
from .epilogues import Epilogue
from .shapes import DirectConv, Winograd
from .winograd import plan
from .winograd_matrices import POINTS, TAPS

# Times in multiply-adds of one lane at peak rate, measured on AVX-512.
TRANSFORM = 6  # for each place of a tile and each of its channels
READ = 3 / 4  # to read a byte of weights that is not in the nearest caches, times the lanes
WORTH_IT = 0.9  # of the direct kernel's time: the estimate may be off


def instead_of(conv: DirectConv, arithmetic: Arithmetic) -> Winograd | None:
    """The Winograd kernel that should be faster than the direct one; None where none is."""
    arithmetic = replace(arithmetic, tiles=NO_TILES)  # which kernel it is must not hang on what was measured of it
    window = conv.window
    if (
        (window.kernel, window.stride, window.dilation) != ((TAPS, TAPS), (1, 1), (1, 1))
        or conv.groups > 1
        or conv.image
    ):
        return None
    extents = conv.batch, conv.height, conv.width, conv.in_channels, conv.out_channels
    assert isinstance(conv.epilogue, Epilogue)
    ways = [Winograd(*extents, window.padding, tile, conv.epilogue) for tile in POINTS]
    best = min(ways, key=lambda spec: _time(spec, arithmetic))
    out_height, out_width = window.output(conv.height, conv.width)
    direct = (conv.batch or 1) * out_height * out_width * TAPS**2 * conv.in_channels * plan(best, arithmetic).pitch_out
    return best if min(out_height, out_width) > 1 and _time(best, arithmetic) < WORTH_IT * direct else None


def _time(spec: Winograd, arithmetic: Arithmetic) -> float:
    """Estimated multiply-adds at peak rate: those done, or those in the time of reading the weights if it is longer."""
    p = plan(spec, arithmetic)
    products = p.blocks.pieces * p.places * spec.in_channels * p.pitch_out
    transforms = p.blocks.pieces * p.places * TRANSFORM * (p.pitch_in + p.pitch_out)
    weights = p.places * spec.in_channels * p.pitch_out
    passes = p.blocks.count if weights * arithmetic.weight_bytes > arithmetic.cache else 1
    return max(products + transforms, weights * arithmetic.weight_bytes * passes * READ * arithmetic.lanes)
