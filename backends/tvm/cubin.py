"""Reading a cubin: the ELF file that holds machine code for one GPU architecture.

NVIDIA does not document the numbers of its sections and attributes. They are those that LLVM's `ELF.h` and the CUDA
binary utilities use, and the tests hold every figure against what `ptxas -v` prints for the same source.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ...ir.errors import BuildError

_ELF_MAGIC = b"\x7fELF"
_MACHINE_CUDA = 190
# Version 8 of the ABI, CUDA 13's, moved the architecture from the lowest byte of e_flags to the next one.
_ABI_WITH_SHIFTED_ARCHITECTURE = 8

_ATTRIBUTE_MAX_THREADS = 0x05
_ATTRIBUTE_FRAME_SIZE = 0x11
_ATTRIBUTE_REGISTERS = 0x2F
_SIZED_ATTRIBUTE = 0x04

# From sm_90 on the driver keeps this part of a block's shared memory for itself, and every kernel's section counts it.
_RESERVED_SHARED = ".nv.shared.reserved.0"
_BYTES_RESERVED = 1024


@dataclass(frozen=True)
class Kernel:
    """What one kernel needs of the GPU: threads and shared memory per block, registers and local memory per thread.

    local_bytes above 0 means that registers spilled or that a variable indexes an array: both live in slow memory.
    """

    name: str
    threads: int
    registers: int
    shared_bytes: int
    local_bytes: int


@dataclass(frozen=True)
class _Section:
    name: str
    size: int
    data: bytes


def architecture(cubin: bytes) -> str:
    """The architecture that the machine code is for, e.g. `"sm_87"`. Raises BuildError when this is no cubin."""
    if cubin[:4] != _ELF_MAGIC or struct.unpack_from("<H", cubin, 18)[0] != _MACHINE_CUDA:
        raise BuildError("cubin", f"the file starts with {cubin[:4]!r}", "expected an ELF file for a CUDA device")
    flags = struct.unpack_from("<I", cubin, 48)[0]
    abi_version = cubin[8]
    number = flags >> 8 & 0xFF if abi_version >= _ABI_WITH_SHIFTED_ARCHITECTURE else flags & 0xFF
    return f"sm_{number}"


def kernels(cubin: bytes) -> tuple[Kernel, ...]:
    """The kernels of a cubin, by name."""
    architecture(cubin)
    sections = {section.name: section for section in _sections(cubin)}
    registers = _by_symbol(sections, _ATTRIBUTE_REGISTERS)
    frames = _by_symbol(sections, _ATTRIBUTE_FRAME_SIZE)
    names = sorted(name.removeprefix(".text.") for name in sections if name.startswith(".text."))
    return tuple(
        Kernel(
            name=name,
            threads=_max_threads(sections[f".nv.info.{name}"].data),
            registers=registers[name],
            shared_bytes=_shared_bytes(name, sections),
            local_bytes=frames[name],
        )
        for name in names
    )


def _shared_bytes(name: str, sections: dict[str, _Section]) -> int:
    section = sections.get(f".nv.shared.{name}")
    if section is None:
        return 0
    return section.size - (_BYTES_RESERVED if _RESERVED_SHARED in sections else 0)


def _sections(cubin: bytes) -> list[_Section]:
    header_offset = struct.unpack_from("<Q", cubin, 40)[0]
    entry_size, count, name_table = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQII", cubin, header_offset + i * entry_size) for i in range(count)]
    names_offset = headers[name_table][4]
    found = []
    for name_index, _type, _flags, _address, offset, size, _link, _info in headers:
        # A section of shared memory has a size but no bytes in the file; slicing past the end is harmless.
        found.append(_Section(_text(cubin, names_offset + name_index), size, cubin[offset : offset + size]))
    return found


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    """The (attribute, payload) pairs of an `.nv.info` section; only the sized format carries a payload of its own."""
    offset = 0
    while offset < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, offset)
        offset += 4
        if form == _SIZED_ATTRIBUTE:
            yield attribute, info[offset : offset + size]
            offset += size


def _max_threads(info: bytes) -> int:
    for attribute, payload in _attributes(info):
        if attribute == _ATTRIBUTE_MAX_THREADS:
            x, y, z = struct.unpack("<III", payload)
            return x * y * z
    return 0


def _by_symbol(sections: dict[str, _Section], attribute: int) -> dict[str, int]:
    """The values of one attribute of the whole file, by the name of the symbol that each belongs to."""
    symbols, strings = sections[".symtab"].data, sections[".strtab"].data
    values = {}
    for found, payload in _attributes(sections[".nv.info"].data):
        if found == attribute:
            symbol, value = struct.unpack("<II", payload)
            values[_text(strings, struct.unpack_from("<I", symbols, symbol * 24)[0])] = value
    return values
