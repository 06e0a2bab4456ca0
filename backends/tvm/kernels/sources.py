"""What a product reads: one packed map, or several whose channels lie side by side as if they were one.

So a concatenation along channels needs no copy: its reader takes each vector of channels from the map that has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..arithmetic.tir import T
from .builder import Index, View


@dataclass(frozen=True)
class Part:
    """One of the maps. first, channels: of the input's channels, those that it holds; pitch: elements of its pixel."""

    view: View
    first: int
    channels: int
    pitch: int

    def holds(self, channel: Index, extent: int) -> Any:
        """The condition that a channel of an input of `extent` channels lies in this map."""
        begin, end = self.first, self.first + self.pitch
        conditions = [channel >= begin] * (begin > 0) + [channel < end] * (end < extent)
        return T.And(*conditions) if len(conditions) == 2 else (conditions or [True])[0]


@dataclass(frozen=True)
class Sources:
    """All of them, in the order of their channels."""

    parts: tuple[Part, ...]

    @staticmethod
    def of(views: Sequence[View], parts: Sequence[int], channels: int, pitch: int) -> Sources:
        """parts: channels of each view where there are several (`in_parts`), each in whole vectors.

        channels, pitch: in use, and elements of a pixel, where there is one.
        """
        if not parts:
            return Sources((Part(views[0], 0, channels, pitch),))
        starts = [sum(parts[:i]) for i in range(len(parts))]
        return Sources(tuple(Part(*each) for each in zip(views, starts, parts, parts, strict=True)))

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def at(self, image: Index) -> Sources:
        """The same maps of one entry of the batch."""
        return Sources(tuple(replace(part, view=part.view.at(image)) for part in self.parts))

    @property
    def dtype(self) -> str:
        return self.parts[0].view.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.parts[0].view.itemsize
