"""The error classes. A message reads `where: what is wrong with the actual value; what was expected; what to do.`"""


class PlanishError(Exception):
    """The work failed. `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, where: str, what: str, *advice: str):
        self.where, self.what = where, what
        text = f"{where}: {'; '.join([what, *advice])}"
        super().__init__(text if text.endswith("?") else f"{text}.")


class UsageError(PlanishError):
    """The call was wrong: an option, a shape, the data, a file or a target."""

    exit_code = 2


class CaptureError(UsageError):
    """The model cannot become a graph."""


class BundleError(UsageError):
    """A bundle is truncated, edited, of another version or for another CPU."""


class VerifyError(PlanishError):
    """A graph broke an invariant: a pass has a defect."""


class PassError(PlanishError):
    """A pass could not do its work on this graph."""


class BuildError(PlanishError):
    """A backend cannot build this graph."""


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message; its class where it has none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
