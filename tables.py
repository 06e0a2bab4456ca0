"""Tables of plain text: shapes such as f32[b,64] are text to them, where rich would read brackets as markup."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text


def name(heading: str = "") -> Column:
    """A column of names: broken only where the terminal is too narrow."""
    return Column(heading, overflow="fold")


def number(heading: str = "") -> Column:
    """A column of numbers: to the right, never broken."""
    return Column(heading, justify="right", no_wrap=True)


def prose(heading: str = "") -> Column:
    """A column of sentences: it gets the room that the others leave, and wraps."""
    return Column(heading, overflow="fold", ratio=1)


def table(title: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> Group:
    """A title and a table below it. Columns without any heading show no head."""
    made = Table(
        *columns,
        box=box.SIMPLE_HEAD,
        show_header=any(column.header for column in columns),
        show_edge=False,
        pad_edge=False,
    )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    # A title of the table's own would be broken at the table's width, however much room there is.
    return Group(Text(title, style="bold"), made) if title else Group(made)


def facts(rows: Iterable[tuple[str, Any]]) -> Group:
    """What it is, and its value, line by line; a value that is empty has no line."""
    return table("", (name(), prose()), [(label, value) for label, value in rows if value not in ("", None)])


def spaced(*parts: RenderableType | None) -> Group:
    """The parts that are there, with a blank line between them."""
    there = [part for part in parts if part is not None]
    lines: list[RenderableType] = [Text("")] * (2 * len(there) - 1 if there else 0)
    lines[::2] = there
    return Group(*lines)


def byte_count(count: int) -> str:
    """`512 B`, `18.4 kB`, `1.25 MB`: powers of 1000, three digits."""
    if count < 1000:
        return f"{count} B"
    size, unit = count / 1000, "kB"
    for larger in ("MB", "GB"):
        if size >= 999.5:
            size, unit = size / 1000, larger
    return f"{size:.{2 if size < 10 else 1 if size < 100 else 0}f} {unit}"
