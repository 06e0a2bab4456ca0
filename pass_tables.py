"""Tables that passes put among their facts, printed: `details["table"] = {"title", "columns", "rows"}`, all JSON."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from .tables import name, number, spaced, table


def pass_table(details: Mapping[str, Any]) -> RenderableType | None:
    """The table of one pass, None where it has none. Its first column names the rows, the others hold numbers."""
    found = details.get("table")
    if not isinstance(found, Mapping):
        return None
    first, *others = map(str, found["columns"])
    return table(str(found["title"]), (name(first), *map(number, others)), found["rows"])


def pass_tables(passes: Any) -> RenderableType | None:
    """Those of all passes of a report, in their order."""
    found = [shown for entry in passes if (shown := pass_table(entry.details)) is not None]
    return spaced(*found) if found else None
