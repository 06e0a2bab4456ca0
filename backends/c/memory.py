"""The static memory plan: buffers whose lives overlap never share a byte."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Buffer:
    """A stretch of memory in use from call `first` to call `last`, both included; size in bytes."""

    size: int
    first: int
    last: int

    def meets(self, other: "Buffer") -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """offsets: one per buffer, multiples of the alignment; bytes: the size of the whole arena."""

    offsets: tuple[int, ...]
    bytes: int


# In which order buffers are placed. None is best for every net, and a plan costs a millisecond: all are tried.
ORDERS: dict[str, Callable[[Buffer], tuple]] = {
    "largest first": lambda b: (-b.size, b.first),
    "largest and longest first": lambda b: (-b.size * (b.last - b.first + 1), b.first),
    "longest first": lambda b: (b.first - b.last, -b.size),
    "as they are made": lambda b: (b.first, -b.size),
}


def plan(buffers: Sequence[Buffer], alignment: int = 64) -> Plan:
    """Give every buffer an offset: in some order, each in the tightest gap among those that it meets.

    The smallest plan of several orders, the first of them on a tie. See Pisarchyk and Lee, "Efficient Memory Management
    for Deep Neural Net Inference" (2020), for orders and the gap rule.
    """

    def order(key: Callable[[Buffer], tuple]) -> list[int]:
        return sorted(range(len(buffers)), key=lambda i: (*key(buffers[i]), i))

    return min((plan_in_order(buffers, order(key), alignment) for key in ORDERS.values()), key=lambda p: p.bytes)


def plan_in_order(buffers: Sequence[Buffer], order: Iterable[int], alignment: int) -> Plan:
    sizes = [round_up(b.size, alignment) for b in buffers]
    offsets: dict[int, int] = {}
    for index in order:
        taken = [(offsets[i], offsets[i] + sizes[i]) for i in offsets if buffers[i].meets(buffers[index])]
        offsets[index] = tightest_gap(sizes[index], sorted(taken))
    total = max((offsets[i] + sizes[i] for i in offsets), default=0)
    return Plan(tuple(offsets[i] for i in range(len(buffers))), total)


def tightest_gap(size: int, taken: Iterable[tuple[int, int]]) -> int:
    """The start of the smallest gap that holds `size` between sorted intervals, else the end of the last one."""
    gaps, end = [], 0
    for low, high in taken:
        if low - end >= size:
            gaps.append((low - end, end))
        end = max(end, high)
    return min(gaps)[1] if gaps else end


def lower_bound(buffers: Sequence[Buffer], alignment: int = 64) -> int:
    """No plan is smaller than this: the most bytes that live at one call."""
    calls = {b.first for b in buffers}
    return max((sum(round_up(b.size, alignment) for b in buffers if b.first <= c <= b.last) for c in calls), default=0)


def round_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
