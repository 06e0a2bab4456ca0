"""Weights by name or pattern: a weight (`head.bias`), a layer (`head`), a block (`layer1`), or `layer1.*.conv2`."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import accumulate

from ..ir.errors import UsageError
from .pipeline_text import did_you_mean


def select(names: Iterable[str], patterns: Iterable[str], where: str, option: str) -> list[str]:
    """The weights among `names` that patterns mean, each once. A pattern that fits a block means all that is in it.

    Raises UsageError for a pattern without a match, with the nearest name where one is close.
    """
    parts = {name: list(_prefixes(name)) for name in names}
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name, of_name in parts.items() if any(fnmatchcase(part, pattern) for part in of_name)]
        if not found:
            known = dict.fromkeys(part for of_name in parts.values() for part in of_name)
            hint = did_you_mean(pattern, known) or "expected a weight's name or a pattern like 'head.*'"
            raise UsageError(where, f"'{pattern}' in '{option}' matches no weight", hint)
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _prefixes(name: str) -> Iterable[str]:
    """`a`, `a.b`, `a.b.weight` of `a.b.weight`."""
    return accumulate(name.split("."), "{}.{}".format)
