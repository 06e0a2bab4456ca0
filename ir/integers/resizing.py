"""Resizing maps: every output pixel reads pixels whose positions (and weights) are stored as integers.

Positions are tables, not formulas, so that no kernel computes one in floating point: what they are for a mode, a scale
and `align_corners` is decided once, when a graph is lowered.
"""

import torch

WEIGHT_BITS = 11  # two weights and eight bits of q - zero_point make 30 bits and a sign: int32 holds the sums
ONE = 2**WEIGHT_BITS


@torch.library.custom_op("planish::upsample_nearest2d_int8", mutates_args=())
def upsample_nearest2d_int8(q: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """q[:, :, rows][:, :, :, columns]. q: int8 or uint8 [N, C, H, W]; rows: int32 [out height]; columns: int32."""
    return q.index_select(2, rows).index_select(3, columns)


@upsample_nearest2d_int8.register_fake
def _(q, rows, columns):
    return q.new_empty((q.shape[0], q.shape[1], rows.shape[0], columns.shape[0]))


@torch.library.custom_op("planish::upsample_bilinear2d_int32", mutates_args=())
def upsample_bilinear2d_int32(
    q: torch.Tensor,
    rows: torch.Tensor,
    row_weights: torch.Tensor,
    columns: torch.Tensor,
    column_weights: torch.Tensor,
    zero_point: int,
) -> torch.Tensor:
    """2**22 times the bilinear interpolation of q - zero_point, exactly.

    Output row i mixes rows[i], with weight 2048 - row_weights[i], and the row below it (the last row has itself below
    it), with weight row_weights[i]; columns likewise. q: int8 or uint8 [N, C, H, W]; tables: int32 [out height] and
    [out width], weights from 0 to 2047.
    """
    return _mixed(_mixed(q.to(torch.int32) - zero_point, 2, rows, row_weights), 3, columns, column_weights)


@upsample_bilinear2d_int32.register_fake
def _(q, rows, row_weights, columns, column_weights, zero_point):
    return q.new_empty((q.shape[0], q.shape[1], rows.shape[0], columns.shape[0]), dtype=torch.int32)


def _mixed(values: torch.Tensor, dim: int, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    next_ones = (positions + 1).clamp(max=values.shape[dim] - 1)
    weights = weights.reshape([-1 if d == dim else 1 for d in range(values.ndim)])
    first, second = values.index_select(dim, positions), values.index_select(dim, next_ones)
    return first * (ONE - weights) + second * weights
