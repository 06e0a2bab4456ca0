"""From an index graph to groups with their importance."""

from dataclasses import replace

import numpy as np

from ..groups import Groups
from ..index.index_graph import IndexGraph
from ..rematch import pieces_of, rematch
from .evidence import Evidence
from .importance import importance


def ranked(
    index: IndexGraph, criterion: str, evidence: Evidence, normalizer: str = "mean"
) -> tuple[Groups, np.ndarray]:
    """The groups, made of the pieces that suit each other best by importance, and the importance of each."""
    groups = Groups(index)
    pieces, evidence = pieces_of(groups), replace(evidence, sums={})
    if pieces is not groups:
        groups = rematch(groups, pieces, importance(pieces, criterion, evidence, normalizer))
    return groups, importance(groups, criterion, evidence, normalizer)
