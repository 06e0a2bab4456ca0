"""Which families have the same structure, whatever their widths (Fang et al., ECCV 2024)."""

from collections import defaultdict

import numpy as np

from ....ir.ops import op_name
from ..groups import Groups


def classes(groups: Groups) -> np.ndarray:
    """[families]: the number of each family's class, in the order of first families.

    Two families are of one class when the rows of parameters that hold them correspond: the same ops read them as the
    same argument, with as many dims, at the same position, and with the same kernel.
    """
    signatures: dict[int, list[tuple]] = defaultdict(list)
    uses = _uses(groups)
    for name, position, dim in groups.rows:
        weight = groups.index.graph.weight(name)
        owners = groups.number[dim]
        signature = (uses[id(weight)], weight.ndim, position, tuple(weight.shape[2:]))
        for family in np.unique(groups.family[owners[owners >= 0]]).tolist():
            signatures[family].append(signature)
    numbers: dict[tuple, int] = {}
    forms = (tuple(sorted(signatures[family])) for family in range(len(groups.families)))
    return np.array([numbers.setdefault(form, len(numbers)) for form in forms], int)


def _uses(groups: Groups) -> dict[int, tuple[tuple[str, int], ...]]:
    """Weight -> (op, which input) of all its readers."""
    graph, found = groups.index.graph, defaultdict(list)
    for read in graph.module.graph.find_nodes(op="get_attr"):
        for user in read.users:
            found[id(graph.weight(read))].append((op_name(user), user.all_input_nodes.index(read)))
    return {weight: tuple(sorted(uses)) for weight, uses in found.items()}
