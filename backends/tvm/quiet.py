"""TVM 0.27 warns once per weight when it writes or reads an executable; nothing is wrong, and nothing turns it off."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_NOISE = (b"Warning: Scope Saving:", b"Warning: Scope Loaded:")
_STDERR = 2


@contextmanager
def without_scope_warnings() -> Iterator[None]:
    """Hold back what goes to the process's stderr meanwhile, and let all of it out but these warnings."""
    try:
        kept = os.dup(_STDERR)
    except OSError:  # a process without stderr
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not line.rstrip().endswith(_NOISE):
                    os.write(_STDERR, line)
