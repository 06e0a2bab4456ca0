"""What torch.compile made in this process: one record per region, kept for `planish.reports()`, told to the log."""

import logging
from collections import deque
from dataclasses import dataclass, field

from ...passes.pipeline import Outcome
from ..artifact import Artifact

logger = logging.getLogger("planish")

# A model with many graph breaks, or one that is compiled again and again, must not fill the memory.
KEPT = 256
# Calls that one line of the log names.
NAMED = 8


@dataclass(frozen=True)
class Compilation:
    """One region.

    outcome   what the pipeline made of it, None where the region never became a graph
    artifact  the code, None where the whole region runs in PyTorch
    eager     calls that stay in PyTorch: (op, source line)
    reasons   why they stay, where it is not that TVM does not know the op
    """

    target: str
    recipe: str
    outcome: Outcome | None = None
    artifact: Artifact | None = None
    eager: tuple[tuple[str, str], ...] = ()
    reasons: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


_kept: deque[Compilation] = deque(maxlen=KEPT)


def compilations() -> list[Compilation]:
    """The latest records, oldest first."""
    return list(_kept)


def record(compilation: Compilation) -> None:
    """Keep a record, and warn about what stays in PyTorch."""
    _kept.append(compilation)
    if compilation.eager:
        listed = ", ".join(f"{op} ({line})" for op, line in compilation.eager[:NAMED])
        more = f" and {len(compilation.eager) - NAMED} more" if len(compilation.eager) > NAMED else ""
        why = f"; {'; '.join(compilation.reasons)}" if compilation.reasons else ""
        logger.warning("%s: stays in PyTorch: %s%s%s", compilation.target, listed, more, why)
