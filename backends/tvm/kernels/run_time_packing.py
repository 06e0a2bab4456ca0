"""Moving one vector of outputs of a right side into its panel: floats one step at a time, bytes a group of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..arithmetic.tir import T
from .builder import Index, View


@dataclass(frozen=True)
class RightSide:
    """[outputs, steps]: element (output, step) lies at output * output_pitch + step * step_pitch."""

    outputs: int
    steps: int
    output_pitch: int
    step_pitch: int


@dataclass(frozen=True)
class Shape:
    """A vector of a panel: `used` of its lanes and `steps` of its group exist; the others are zero."""

    right: RightSide
    lanes: int
    group: int
    used: int
    steps: int

    @property
    def is_whole(self) -> bool:
        return (self.used, self.steps) == (self.lanes, self.group)


def floats(source: View, read: Index, panels: View, place: Index, shape: Shape) -> None:
    """[lanes]"""
    if shape.right.output_pitch == 1 and shape.used == shape.lanes:
        panels.store(place, source.vector(read, shape.lanes), shape.lanes)
        return
    for lane in range(shape.lanes):
        value = source.scalar(read + lane * shape.right.output_pitch) if lane < shape.used else 0.0
        panels.store(place + lane, value)


def bytes_(source: View, read: Index, panels: View, place: Index, shape: Shape) -> None:
    """[lanes][group] of int8; bytes that are unsigned in memory are 128 less."""
    right, lanes, group = shape.right, shape.lanes, shape.group
    if shape.is_whole and right.step_pitch == 1:  # a lane's group lies side by side: a word of it
        word = f"int{8 * group}"
        words = [
            T.reinterpret(source.vector(read + lane * right.output_pitch, group), dtype=word) for lane in range(lanes)
        ]
        whole = T.reinterpret(T.Shuffle(words, list(range(lanes))), dtype=f"{source.dtype}x{lanes * group}")
    elif shape.is_whole and right.output_pitch == 1:  # rows of lanes, interleaved
        rows = [source.vector(read + step * right.step_pitch, lanes) for step in range(group)]
        order = [step * lanes + lane for lane in range(lanes) for step in range(group)]
        whole = T.Shuffle(rows, order)
    else:
        _one_by_one(source, read, panels, place, shape)
        return
    panels.store(place, _signed(whole, source.dtype, lanes * group), lanes * group)


def _one_by_one(source: View, read: Index, panels: View, place: Index, shape: Shape) -> None:
    for lane in range(shape.lanes):
        for step in range(shape.group):
            value: Any = T.cast(0, "int8")
            if lane < shape.used and step < shape.steps:
                here = read + lane * shape.right.output_pitch + step * shape.right.step_pitch
                value = _signed(source.scalar(here), source.dtype, 1)
            panels.store(place + lane * shape.group + step, value)


def _signed(value: Any, dtype: str, lanes: int) -> Any:
    """The same numbers less 128 where they are unsigned: their upper bit flipped."""
    if dtype == "int8":
        return value
    flip = T.cast(128, "uint8")
    flipped = value ^ (flip if lanes == 1 else T.broadcast(flip, lanes))
    return T.reinterpret(flipped, dtype="int8" if lanes == 1 else f"int8x{lanes}")
