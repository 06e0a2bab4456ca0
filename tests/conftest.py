"""What every test shares: a seed, one thread, deterministic property tests and golden texts."""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("planish", derandomize=True, deadline=None, database=None, max_examples=100)
hypothesis.settings.load_profile("planish")

# Tests build what they test, and leave the user's own cache alone; those of the cache name a folder.
os.environ["PLANISH_CACHE"] = "off"
os.environ["PLANISH_TILES"] = "off"  # what a user measured must not change what is tested

# A shell that starts the suite in the background lets it ignore Ctrl-C; programs that tests interrupt would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden texts instead of comparing")


def pytest_collection_finish() -> None:
    """Searching garbage is a tenth of the time that captures take, and finds little: what was imported is left out of
    it, and it is done less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_sessionfinish() -> None:
    """Extension modules complain about what is left when the interpreter ends."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed_and_threads() -> None:
    import torch  # not by the process that deals out the tests

    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compare a text with `golden/<test name>.txt` beside the test file; `--update-golden` writes it."""
    path = Path(request.path).parent / "golden" / f"{request.node.name}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
        assert path.exists(), f"there is no {path}; run pytest --update-golden and look at what it wrote"
        assert text + "\n" == path.read_text(encoding="utf-8")

    return check
