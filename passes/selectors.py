"""Weights by name or pattern: a weight (`head.bias`), a layer (`head`), a block (`layer1`), or `layer1.*.conv2`."""

from collections.abc import Hashable, Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import TypeVar

from ..ir.errors import UsageError
from .pipeline_text import did_you_mean

Key = TypeVar("Key", bound=Hashable)


def select(names: Iterable[str], patterns: Iterable[str], where: str, option: str) -> list[str]:
    """The weights among `names` that patterns mean, each once. A pattern that fits a block means all that is in it.

    Raises UsageError for a pattern without a match, with the nearest name where one is close.
    """
    parts = {name: prefixes(name) for name in names}
    return list(match(parts, patterns, where, option, "weight", "expected a weight's name or a pattern like 'head.*'"))


def match(
    labels: Mapping[Key, Iterable[str]], patterns: Iterable[str], where: str, option: str, kind: str, advice: str
) -> dict[Key, str]:
    """The things that have a label which a pattern fits, each with the first such pattern, in the patterns' order.

    Raises UsageError for a pattern without a match, with the nearest label where one is close, else with the advice.
    """
    chosen: dict[Key, str] = {}
    for pattern in patterns:
        found = [key for key, of_key in labels.items() if any(fnmatchcase(label, pattern) for label in of_key)]
        if not found:
            known = dict.fromkeys(label for of_key in labels.values() for label in of_key)
            what = f"'{pattern}' in '{option}' matches no {kind}"
            raise UsageError(where, what, did_you_mean(pattern, known) or advice)
        for key in found:
            chosen.setdefault(key, pattern)
    return chosen


def prefixes(name: str) -> list[str]:
    """`a`, `a.b`, `a.b.weight` of `a.b.weight`."""
    return list(accumulate(name.split("."), "{}.{}".format))
