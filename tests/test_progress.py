"""Progress bars: seen on a terminal, silent elsewhere, and gone at the end."""

import io

import pytest
from rich.console import Console

from planish.progress import ProgressBars

# What ends the output: the line of the last bar is erased, and the cursor is there again.
CLEARED = "\x1b[2K\x1b[?25h\r"


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def test_items_pass_through_with_a_bar():
    screen = console(True)
    with ProgressBars(screen) as bars:
        assert list(bars(["a", "b"], "passes [b]")) == ["a", "b"]
        assert list(bars(iter("xyz"), "batches")) == ["x", "y", "z"]
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "passes [b]" in text
    assert text.endswith(CLEARED)


def test_nothing_is_printed_where_there_is_no_terminal():
    screen = console(False)
    with ProgressBars(screen) as bars, bars.step("build"):
        assert list(bars([1, 2, 3], "passes")) == [1, 2, 3]
    assert screen.file.getvalue() == ""  # type: ignore[attr-defined]


def test_an_error_ends_the_bar_too():
    screen = console(True)
    with pytest.raises(KeyError), ProgressBars(screen) as bars, bars.step("build"):
        for _ in bars([1], "passes"):
            raise KeyError("x")
    assert screen.file.getvalue().endswith(CLEARED)  # type: ignore[attr-defined]
