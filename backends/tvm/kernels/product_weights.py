"""The arrays that a product reads beside its input: weights, biases, and for integers what their epilogue needs."""

from __future__ import annotations

import numpy as np

from ..arithmetic import Arithmetic, Integers
from . import packing
from .builder import Kernel, Parameters
from .epilogues import Epilogue, Finish, Requantize
from .output import Output
from .requantize import CONSTANTS, result_dtype, start
from .shapes import Shape, Signature


def signature(
    epilogue: Finish,
    arithmetic: Arithmetic,
    source: Shape,
    output: Shape,
    packed: tuple[tuple[Shape, str], ...],
    outputs: int,
    parts: tuple[int, ...] = (),
) -> Signature:
    """All parameters: `packed` holds (shape, dtype) of weights and biases, in call order.

    outputs: lanes of outputs, those of a multiplier per channel; parts: channels of the maps that `source` lies in.
    """
    extra: tuple[tuple[Shape, str], ...] = ()
    if not isinstance(epilogue, Epilogue):
        extra += (((outputs,), "float32"),)
    if isinstance(epilogue, Requantize):
        extra += (((CONSTANTS,), "float32"),)
    shapes, dtypes = zip(*packed, *extra, strict=True)
    residual = output if epilogue.residual else None
    is_float = isinstance(epilogue, Epilogue)
    result = arithmetic.activation if is_float else result_dtype(epilogue, arithmetic.activation)
    sources = tuple((*source[:-1], channels) for channels in parts) or (source,)
    return Signature(sources, shapes, residual, output, arithmetic.activation, result, dtypes)


def finishing(
    epilogue: Finish,
    arithmetic: Arithmetic,
    outputs: int,
    multiplier: np.ndarray | None,
    constants: np.ndarray | None,
) -> list[np.ndarray]:
    """What the epilogue of int32 sums reads: a multiplier per channel, and the constants of `requantize.constants`."""
    arrays = []
    if not isinstance(epilogue, Epilogue):
        arrays.append(packing.lanes_of(multiplier, outputs, arithmetic.lanes))
    if isinstance(epilogue, Requantize):
        assert constants is not None
        arrays.append(constants)
    return arrays


def biases(
    arithmetic: Arithmetic,
    bias: np.ndarray | None,
    tap_sums: np.ndarray,
    zero_point: int,
    reached: list[np.ndarray],
    epilogue: Finish | None = None,
) -> np.ndarray:
    """[classes * outputs] of the accumulator's dtype: sums begin with them.

    An input integer is q in memory and means q - zero_point, so that each bias holds -zero_point times the sum of the
    weights that its window reaches. tap_sums: [outputs, taps], the weights summed over inputs. reached: for every class
    of outputs [taps], whether a tap falls on the image. epilogue: what its sums begin with is added
    (`requantize.start`). Sums wrap around as the accumulators do.
    """
    outputs = len(tap_sums)
    own = np.zeros(outputs) if bias is None else np.asarray(bias).reshape(-1)
    if begin := start(epilogue):
        own = own.astype(np.int64) + begin
    if not zero_point:
        return np.concatenate([packing.lanes_of(own, outputs, arithmetic.lanes, arithmetic.accumulator)] * len(reached))
    correction = [zero_point * (tap_sums.astype(np.int64) @ taps.astype(np.int64)) for taps in reached]
    corrected = [(own.astype(np.int64) - c).astype(np.int32) for c in correction]
    return np.concatenate([packing.lanes_of(c, outputs, arithmetic.lanes, "int32") for c in corrected])


def output_of(kernel: Kernel, arithmetic: Arithmetic, epilogue: Finish, given: Parameters, taken: int) -> Output:
    """Where a product writes; `taken` of its weights are packed weights and biases."""
    extra = given.weights[taken:]
    multiplier = extra[0] if extra else None
    constants = extra[1] if isinstance(epilogue, Requantize) else None
    integers = together(arithmetic, epilogue)
    return Output(kernel, arithmetic, epilogue, given.target, given.residual, multiplier, constants, integers)


def together(arithmetic: Arithmetic, epilogue: Finish) -> Integers | None:
    """The arithmetic, if it makes several vectors of sums into bytes at a time."""
    if isinstance(arithmetic, Integers) and arithmetic.together > 1 and isinstance(epilogue, Requantize):
        return arithmetic
    return None
