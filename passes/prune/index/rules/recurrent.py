"""LSTM, GRU and RNN: gates, layers, directions and projections."""

import numpy as np
from torch import fx

from .....ir.ops import op_name
from ..constraints import Constraints
from ..relation import Dim, Dims, NoRule
from .table import Call, rule

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*GATES)
def recurrent(index: Constraints, node: fx.Node, call: Call) -> list[Dims]:
    """Per layer and direction `weight_ih[gates * units, in]`, `weight_hh[gates * units, out]`, two biases, and for a
    projection `weight_hr[out, units]`.

    One tensor holds the states of all layers and directions, so they share their units: a unit goes from all of them.
    """
    if not hasattr(call, "input"):
        raise NoRule("its input is a packed sequence")
    states = call.hx if isinstance(call.hx, (list, tuple)) else [call.hx]
    out, units = index[states[0]][-1], index[states[-1]][-1]
    directions = 2 if call.bidirectional else 1
    fed, every = index[call.input][-1], _both(out, directions)
    cells = _cells(call, directions, projected=len(states) == 2 and len(out) != len(units))
    index.contract(node, call.input, -1)
    for number, cell in enumerate(cells):
        _cell(index, node, cell, fed if number < directions else every, out, units)
    return [[*index[call.input][:-1], every], *(index[state] for state in states)]


def _both(out: Dim, directions: int) -> Dim:
    return out if directions == 1 else np.concatenate([out] * directions)


def _cells(call: Call, directions: int, projected: bool) -> list[list[fx.Node]]:
    """The weights of every layer and direction, in order."""
    size = 2 + 2 * bool(call.has_biases) + projected
    if len(call.params) != size * directions * call.num_layers:
        raise NoRule("its weights are not those of its layers and directions")
    return [list(call.params[start : start + size]) for start in range(0, len(call.params), size)]


def _cell(index: Constraints, node: fx.Node, weights: list[fx.Node], fed: Dim, out: Dim, units: Dim) -> None:
    """One layer in one direction: it reads `fed` and its own `out`, and has `units`."""
    gates = GATES[op_name(node)]
    from_input, from_state, *others = weights
    index.tie(index[from_input][1], fed)
    index.tie(index[from_state][1], out)
    index.contract(node, from_input, 1)
    index.contract(node, from_state, 1)
    if len(others) % 2:  # a projection
        projection = index[others.pop()]
        index.tie(projection[0], out)
        index.tie(projection[1], units)
        index.contract(node, weights[-1], 1)
    else:
        index.tie(out, units)
    for weight in (from_input, from_state, *others):
        sizes = {"gate": gates, "unit": len(units)}
        views = ((index[weight][0], ("gate", "unit")), (units, ("unit",)))
        index.relate(node, sizes, *views, dead=("gate",))
    steps = index[node.args[0]][:-1]  # type: ignore[index]
    for weight in weights:
        if len(index[weight]) == 2:
            index.multiply(node, [*steps, *index[weight]])
    index.produce(from_input, units)
