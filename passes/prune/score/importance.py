"""The importance of every group: a criterion read in all places that the group lives in."""

import numpy as np

from ....ir.errors import UsageError
from ..groups import Groups
from .criteria import CRITERIA, entry_of
from .evidence import Evidence
from .normalizers import NORMALIZERS, Spread

# What ranks the groups that a criterion says nothing about: every group holds parameters.
FALLBACK = "l1"


def importance(
    groups: Groups, criterion: str, evidence: Evidence | None = None, normalizer: str = "mean"
) -> np.ndarray:
    """[groups]: the importance of every group, never negative. What the criterion finds equal has equal scores.

    Each place that a group lives in counts alike: its scores are normalised within each family and averaged over the
    places. Vectors (biases, norms) speak only for groups that no matrix or filter holds. Groups that the criterion
    says nothing about (no batch norm scales them, no layer's output that was seen holds them) are ranked by l1.

    evidence: what `gather` found, for criteria that need data.
    normalizer: mean, max, sum, standard, gaussian or none. `standard` is shifted so that the least score is 0.

    Raises UsageError for an unknown criterion or normaliser, for missing evidence, for `batch-norm` where the model
    has none, and with `none` for groups that the criterion says nothing about: their l1 has other units.
    """
    entry = entry_of(CRITERIA, criterion, "importance")
    normalise = entry_of(NORMALIZERS, normalizer, "normalizer")
    total, held = np.zeros((2, groups.count)), np.zeros((2, groups.count))
    for reading in entry.read(groups, evidence or Evidence()):
        tier = int(reading.is_vector)
        total[tier, reading.groups] += normalise(Spread(reading.score, groups.family[reading.groups]))
        held[tier, reading.groups] += 1
    matrices, vectors = np.divide(total, held, out=np.full_like(total, np.nan), where=held > 0)
    scores = np.where(np.isnan(matrices), vectors, matrices)
    silent = np.isnan(scores)
    if silent.any():
        scores[silent] = _fallback(groups, criterion, normalizer, silent)
    return scores - min(scores.min(initial=0.0), 0.0)


def _fallback(groups: Groups, criterion: str, normalizer: str, silent: np.ndarray) -> np.ndarray:
    """Scores for the groups that the criterion says nothing about. A piece that holds no weight scores 0."""
    held = np.zeros(groups.count, bool)
    for _, _, dim in groups.rows:
        held[groups.number[dim][groups.number[dim] >= 0]] = True
    unheard = np.flatnonzero(silent & held)
    if not len(unheard):
        return np.zeros(np.count_nonzero(silent))
    if normalizer == "none":
        layer = groups.families[groups.family[unheard[0]]].layer
        what = f"it says nothing about the channels of '{layer}', and without a normaliser nothing compares with it"
        raise UsageError(f"importance '{criterion}'", what, "choose a normaliser, such as mean")
    return importance(groups, FALLBACK, None, normalizer)[silent]
