"""A weight's scale per channel by what rounding does to the layer's output, instead of by its largest weight."""

import math
from dataclasses import replace

import torch

from ....ir.graph import Graph
from ....ir.ops import arguments, is_op
from ..placement import ACTIVATION_QUANTIZER
from ..rules import Role, Roles, data_inputs
from ..scales import symmetric
from .reference import Layer
from .rounding import Problem
from .rows import Rows, second_moments

# Shares of the scale that holds the largest weight. With few levels a smaller one, that clips, is often better.
SHARES = tuple(1 - 0.02 * step for step in range(31))


def search_scales(graph: Graph, layer: Layer, problem: Problem, rows: Rows) -> Problem:
    """The problem with the scales whose nearest rounding changes the product's output least, in mean square over rows.

    The error of a channel is d' H d, with d the change of its weights and H the mean of the inputs' products, so that
    a try costs no run over the rows; where H would not fit it is the unit matrix. A scale at its floor (a channel of
    nearly zero weights) stays. Source: section 5 of arXiv:2004.10568 (there over the weights alone).
    """
    second = second_moments(rows)
    second = second.to(problem.weight) if second is not None else None
    best, least = problem.scale, torch.full_like(problem.scale, torch.inf)
    for share in SHARES:
        tried = replace(problem, scale=_scale(graph, layer, problem, share))
        change = tried.nearest() * tried.scale - problem.weight
        error = ((change if second is None else change @ second) * change).sum(2, keepdim=True)
        better = error < least
        best, least = torch.where(better, tried.scale, best), torch.where(better, error, least)
    return replace(problem, scale=best)


def _scale(graph: Graph, layer: Layer, problem: Problem, share: float) -> torch.Tensor:
    """[groups, outputs, 1]: the scale that holds this share of each channel's largest weight, over the floors."""
    largest = problem.weight.abs().amax(2).reshape(-1) * share
    scale, _ = symmetric(-largest, largest, problem.limit, problem.bias.reshape(-1), _input_scale(graph, layer))
    return scale.reshape(problem.scale.shape)


def _input_scale(graph: Graph, layer: Layer) -> float:
    """The scale of the activation that the product reads; infinite (no floor by the bias) for a float one."""
    read, roles = arguments(layer.product).input, Roles(graph)
    while roles[read] in (Role.PASS, Role.JOIN) and not is_op(read, ACTIVATION_QUANTIZER):
        read = data_inputs(read)[0]
    return float(graph.weight(arguments(read).scale)) if is_op(read, ACTIVATION_QUANTIZER) else math.inf
