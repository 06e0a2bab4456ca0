"""Where Winograd in integers should be faster than the direct kernel, and what makes it exact."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...tiles import NO_TILES
from ..arithmetic import Integers, Smull, Vmull
from .epilogues import Requantize
from .shapes import DirectConv, IntegerWinograd, round_up
from .winograd_choice import taps_on_image
from .winograd_integer_plan import lines_of, plan, weights_of
from .winograd_integer_points import Points, points_of

# A multiplier is divided by a power of two, which is exact where the quotient is no denormal.
LEAST_MULTIPLIER = 2.0**-100


@dataclass(frozen=True)
class Costs:
    """In cycles, by llvm-mca's model of a core. products, direct: multiply-adds of a cycle, in 16 and in 8 bits.

    spread, gather: of a tile's transforms, for four channels; read: bytes of weights that a cycle reads from memory, at
    about 4 GB/s on a Raspberry Pi 4 of 1.5 GHz; worth_it: share of the direct kernel's time below which the estimate is
    believed.
    """

    products: float
    direct: float
    spread: float
    gather: float
    read: float = 8 / 3
    worth_it: float = 0.95


COSTS: dict[type[Integers], Costs] = {
    Smull: Costs(products=4, direct=8, spread=90, gather=200),
    Vmull: Costs(products=4, direct=7.5, spread=200, gather=320),
}


# (kernel, stride) of both directions; the phases of a stride share tiles.
WINDOWS = {(3, 1), (7, 2)}


def instead_of(
    conv: DirectConv, arithmetic: Integers, ends: np.ndarray, multiplier: np.ndarray
) -> IntegerWinograd | None:
    """The Winograd kernel that should be faster than a direct one; None where it is not, or would not be exact.

    ends: [2, outputs], the least and the greatest sums (`emit.integer_bounds.sum_ends`); multiplier: of each output.
    """
    cost, window, epilogue = COSTS.get(type(arithmetic)), conv.window, conv.epilogue
    (kernel, across), (stride, step) = window.kernel, window.stride
    plain = kernel == across and stride == step and window.dilation == (1, 1) and conv.groups == 1 and not conv.image
    if cost is None or not plain or (kernel, stride) not in WINDOWS:
        return None
    if not isinstance(epilogue, Requantize) or epilogue.small:
        return None
    extents = conv.batch, conv.height, conv.width, conv.in_channels, conv.out_channels
    spec = IntegerWinograd(*extents, window.padding, epilogue, kernel, stride)
    if not all(line.is_whole for line in lines_of(spec)):
        return None
    arithmetic = replace(arithmetic, tiles=NO_TILES)
    if _time(spec, arithmetic, cost) >= cost.worth_it * _direct_time(conv, arithmetic, cost):
        return None
    exact = (replace(spec, wide=wide) for wide in (False, True) if is_exact(points_of(wide=wide), ends, multiplier))
    return next(exact, None)


def is_exact(points: Points, ends: np.ndarray, multiplier: np.ndarray) -> bool:
    """Whether every sum fits beside the power of two that is left in it, and every multiplier can be divided by it."""
    factors = np.abs(np.asarray(multiplier, np.float64))
    least = factors[factors > 0].min(initial=1.0)
    return int(np.abs(ends).max(initial=0)) <= points.largest_sum and least >= LEAST_MULTIPLIER


def _time(spec: IntegerWinograd, arithmetic: Integers, cost: Costs) -> float:
    """Cycles of all cores together, or those in which weights are read if they are more."""
    p, images = plan(spec, arithmetic), spec.batch or 1
    transforms = p.tiles * (cost.spread * spec.stride**2 * p.pitch_in + cost.gather * p.pitch_out) / p.lanes
    done = images * (p.products(spec) / cost.products + transforms)
    read = 2 * weights_of(spec, p.places) * p.pitch_out
    return max(done / arithmetic.cores, _reading(read, images // p.images, arithmetic, cost))


def _direct_time(conv: DirectConv, arithmetic: Integers, cost: Costs) -> float:
    """The direct kernel's, which multiplies whole groups of input channels."""
    images, matrix = conv.batch or 1, round_up(conv.in_channels, arithmetic.group) * conv.out_channels
    done = images * taps_on_image(conv.window, conv.height, conv.width) * matrix / cost.direct
    return max(done / arithmetic.cores, _reading(conv.window.taps * matrix, images, arithmetic, cost))


def _reading(size: int, passes: int, arithmetic: Integers, cost: Costs) -> float:
    """Cycles of reading bytes of weights: again in each pass where the cache does not hold them."""
    return (passes if size > arithmetic.cache else 1) * size / cost.read
