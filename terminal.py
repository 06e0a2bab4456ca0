"""The frame of every command: results on stdout as tables or one JSON document, errors in one line on stderr."""

import contextlib
import ctypes
import io
import json
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer
from rich.console import Console, RenderableType
from typer.core import TyperGroup

from .ir.errors import PlanishError

PROGRAM = "planish"
DEBUG = "PLANISH_DEBUG"
JSON_OPTION = "--json"
INTERRUPTED = 130
# Wide enough that no line of a table is broken on its way into a file or grep.
WIDTH_OF_PIPES = 160


@dataclass(frozen=True)
class View:
    """What a command found: a JSON-able document, and how people read it."""

    document: Any
    shown: RenderableType
    exit_code: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a command ended: one line, and the exit code."""

    line: str
    exit_code: int

    @property
    def document(self) -> dict[str, Any]:
        return {"error": {"message": self.line, "exit_code": self.exit_code}}


class CommandGroup(TyperGroup):
    """Commands that return a View. `main` shows it, turns every error into one line, and exits."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **options: Any) -> NoReturn:
        words = list(sys.argv[1:] if args is None else args)
        as_json = JSON_OPTION in words
        options["standalone_mode"] = False
        with results_stream(as_json) as results:
            ended = run_guarded(lambda: super(CommandGroup, self).main(words, PROGRAM, **options))
            if isinstance(ended, Failure):
                print(f"{PROGRAM}: {ended.line}", file=sys.stderr)
            if as_json and isinstance(ended, (View, Failure)):
                print(json.dumps(plain(ended.document), indent=2, ensure_ascii=False), file=results)
            elif isinstance(ended, View):
                stdout_console().print(ended.shown, crop=False)
        # An int is what --help ends with.
        sys.exit(ended.exit_code if isinstance(ended, (View, Failure)) else ended)


def run_guarded(work: Callable[[], Any]) -> Any:
    """What `work` returns, or the Failure that an exception means."""
    try:
        ended = work()
        return Failure("interrupted", INTERRUPTED) if ended == INTERRUPTED else ended
    except typer.Abort:
        return Failure("interrupted", INTERRUPTED)
    except typer.TyperException as error:
        # Without any word the help was shown, and there is nothing to add.
        return Failure(wrong_call(error), error.exit_code) if error.format_message() else error.exit_code
    except KeyboardInterrupt:
        return Failure("interrupted", INTERRUPTED)
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    if isinstance(error, PlanishError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, OSError) and error.filename:
        return Failure(f"{error.filename}: {error.strerror}.", 1)
    what = " ".join(str(error).split())[:300]
    advice = f"this is a defect of Planish: {DEBUG}=1 shows where; please report it"
    return Failure(f"{type(error).__name__}: {what}; {advice}.", 1)


def wrong_call(error: typer.TyperException) -> str:
    """typer's message for a wrong option or argument, in our form."""
    context = getattr(error, "ctx", None)
    command = context.command_path.removeprefix(PROGRAM).strip() if context else ""
    possible = sorted(getattr(error, "possibilities", None) or ())
    what = f"{error.message}; did you mean '{possible[0]}'?" if possible else error.format_message().rstrip(".")
    what = what[:1].lower() + what[1:]
    return f"{command or 'command line'}: {what}; see 'planish {command + ' ' if command else ''}--help'."


@contextlib.contextmanager
def results_stream(reserved: bool) -> Iterator[TextIO]:
    """The stream for results. `reserved`: all that others print meanwhile, native code too, goes to stderr."""
    stdout = sys.stdout
    if not reserved:
        yield stdout
        return
    try:
        descriptor, error_descriptor = stdout.fileno(), sys.stderr.fileno()
    except (io.UnsupportedOperation, AttributeError):  # streams in memory
        with contextlib.redirect_stdout(sys.stderr):
            yield stdout
        return
    stdout.flush()
    kept = os.dup(descriptor)
    os.dup2(error_descriptor, descriptor)
    try:
        with contextlib.redirect_stdout(sys.stderr), open(os.dup(kept), "w", encoding="utf-8") as results:
            yield results
    finally:
        ctypes.CDLL(None).fflush(None)  # what C code printed and libc still holds belongs to stderr too
        os.dup2(kept, descriptor)
        os.close(kept)


def stdout_console() -> Console:
    """Plain text unless stdout is a terminal; brackets are never markup."""
    is_pipe = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=WIDTH_OF_PIPES if is_pipe else None, markup=False, highlight=False, emoji=False)


def plain(value: Any) -> Any:
    """The value as JSON has it: NaN and infinity are null, a path is its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def quieten_libraries() -> None:
    """Python warnings of the libraries below are for those who develop them."""
    if not sys.warnoptions and not os.environ.get(DEBUG):
        warnings.simplefilter("ignore")


def end_as_if_interrupted() -> None:
    """Let `kill` and `timeout` end a command as Ctrl-C does, so that drafts and temporary folders go."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
