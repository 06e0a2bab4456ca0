"""Progress bars on stderr: `bars(items, label)` for a list of things to do, `with bars.step(label)` for one thing."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class ProgressBars:
    """Bars for work that may take a while; nothing is shown where stderr is no terminal, and nothing stays behind.

    A `with` block around the work; the object itself is the `progress` of `planish.compile`.
    """

    def __init__(self, console: Console | None = None):
        console = Console(stderr=True) if console is None else console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "ProgressBars":
        self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        self._bars.stop()

    def __call__(self, items: Iterable, label: str) -> Iterator:
        """The items, with a bar that counts them. Bars inside bars stand below each other."""
        total = len(items) if isinstance(items, Sized) else None
        task = self._bars.add_task(label, total=total)
        try:
            for item in items:
                yield item
                self._bars.advance(task)
        finally:
            self._bars.remove_task(task)

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """A bar for one thing that takes as long as it takes."""
        task = self._bars.add_task(label, total=None)
        try:
            yield
        finally:
            self._bars.remove_task(task)
