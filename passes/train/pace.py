"""How fast a model becomes smaller over the cuts of gradual pruning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...ir.errors import UsageError


@dataclass(frozen=True)
class PolynomialSchedule:
    """From `start` to `end` in `steps`, fast at first: end + (start - end) (1 - step / steps)^power.

    Zhu and Gupta, "To Prune, or Not to Prune", 2017; the PolynomialDecay of TensorFlow's model optimization toolkit.
    For a training loop of your own: at each step that `PolynomialSchedule(1.0, 0.5, 10).target(step)` names another
    share, prune to it. Linear with power 1.

    Raises UsageError for no steps, and a power that is not above 0.
    """

    start: float
    end: float
    steps: int
    power: float = 3.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError("PolynomialSchedule", f"steps is {self.steps}", "expected 1 or more")
        if not self.power > 0:
            raise UsageError("PolynomialSchedule", f"power is {self.power:g}", "expected a number above 0")

    def target(self, step: int) -> float:
        """The value after `step` steps: `start` at 0 and before, `end` from `steps` on."""
        left = 1 - min(max(step, 0), self.steps) / self.steps
        return self.end + (self.start - self.end) * left**self.power


def one_shot(end: float, cuts: int) -> list[float]:
    return [end]


def geometric(end: float, cuts: int) -> list[float]:
    """Each cut leaves the same share of what there was (as in iterative pruning: Han et al., NIPS 2015)."""
    return [end ** (cut / cuts) for cut in range(1, cuts)] + [end]


def polynomial(end: float, cuts: int) -> list[float]:
    schedule = PolynomialSchedule(1.0, end, cuts)
    return [schedule.target(cut) for cut in range(1, cuts)] + [end]


# (the share that remains in the end, the number of cuts) -> the share that remains after each cut.
PACES: Mapping[str, Callable[[float, int], list[float]]] = {
    "one-shot": one_shot,
    "geometric": geometric,
    "polynomial": polynomial,
}
