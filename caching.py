"""What `planish cache` shows and clears: the code that was built before, on disk."""

from datetime import datetime

from .backends.cache import Cache, Stored
from .ir.errors import UsageError
from .tables import byte_count, facts, name, number, spaced, table
from .terminal import View

# Entries that are listed before it says how many more there are.
LISTED = 20
# Digits of a key that tell entries apart.
SHORT = 12


def cache_view() -> View:
    """Where the cache is, how much it holds and may hold, and its entries, the latest used first."""
    cache = _opened()
    entries = cache.stored()[::-1]
    total = sum(entry.bytes for entry in entries)
    document = {"folder": str(cache.folder), "bytes": total, "limit": cache.limit,
                "entries": [{"key": e.path.stem, "bytes": e.bytes, "used": _time(e)} for e in entries]}  # fmt: skip
    rows = [("folder", str(cache.folder)), ("holds", f"{len(entries)} entries, {byte_count(total)}"),
            ("at most", byte_count(cache.limit))]  # fmt: skip
    listed = [(entry.path.stem[:SHORT], byte_count(entry.bytes), _time(entry)) for entry in entries[:LISTED]]
    if len(entries) > LISTED:
        listed.append((f"and {len(entries) - LISTED} more", "", ""))
    columns = (name("entry"), number("size"), name("last used"))
    return View(document, spaced(facts(rows), table("", columns, listed) if listed else None))


def clear_view() -> View:
    """Remove all entries, and say what went."""
    cache = _opened()
    gone = cache.clear()
    size = sum(entry.bytes for entry in gone)
    document = {"folder": str(cache.folder), "removed": len(gone), "bytes": size}
    return View(document, facts([("removed", f"{len(gone)} entries, {byte_count(size)}, from {cache.folder}")]))


def _opened() -> Cache:
    cache = Cache.default()
    if cache is None:
        raise UsageError("cache", "PLANISH_CACHE switches it off", "unset it to look at the cache")
    return cache


def _time(entry: Stored) -> str:
    return datetime.fromtimestamp(entry.used).isoformat(" ", "seconds")
