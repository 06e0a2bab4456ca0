"""Reading the symbols of an ELF object, which needs no binutils."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

LOCAL, SYMBOL_TABLE = 0, 2


def global_symbols(path: Path) -> tuple[set[str], set[str]]:
    """Names of the defined and of the undefined global symbols of a 64-bit little-endian object."""
    image = path.read_bytes()
    (table,) = struct.unpack_from("<Q", image, 40)
    entry_bytes, count = struct.unpack_from("<HH", image, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, table + i * entry_bytes) for i in range(count)]
    defined, undefined = set(), set()
    for _, kind, _, _, offset, size, link, *_ in sections:
        for at in range(offset, offset + size, 24) if kind == SYMBOL_TABLE else ():
            name, info, _, section, _, _ = struct.unpack_from("<IBBHQQ", image, at)
            start = sections[link][4] + name
            text = image[start : image.index(b"\0", start)].decode()
            if info >> 4 != LOCAL:
                (defined if section else undefined).add(text)
    return defined, undefined


@pytest.fixture
def symbols_of() -> Callable[[Path], tuple[set[str], set[str]]]:
    return global_symbols
