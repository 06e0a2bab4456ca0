"""Where the rows of attention's operands lie: heads beside each other, or tokens."""

from __future__ import annotations

from dataclasses import dataclass

from .builder import Index


@dataclass(frozen=True)
class Tokens:
    """How an operand lies in memory: [batch, heads, length, width], with tokens_first [batch, length, heads, width]."""

    heads: int
    length: int
    width: int
    tokens_first: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        outer = (self.length, self.heads) if self.tokens_first else (self.heads, self.length)
        return *outer, self.width

    @property
    def pitch(self) -> int:
        """Elements from one token to the next."""
        return self.heads * self.width if self.tokens_first else self.width

    def offset(self, head: Index, token: Index) -> Index:
        start = head * self.width if self.tokens_first else head * (self.length * self.width)
        return start + token * self.pitch
