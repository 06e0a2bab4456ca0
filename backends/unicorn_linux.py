"""Just enough of Linux to run one static aarch64 program on the Unicorn CPU emulator.

A script: `python unicorn_linux.py [--cpu cortex-a72] PROGRAM ARGUMENT...`. It imports nothing of Planish, so that it
starts in a fraction of a second, and it runs in a process of its own, so that it can be ended. The program sees one
thread, the files of this machine and no network.
"""

import argparse
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import unicorn
from unicorn import arm64_const as arm
from unicorn.unicorn import Uc, UcError

PAGE = 0x1000
# The upper part holds the stack, so that the heap below it may grow; a model's arena lies in its own segments.
STACK_TOP, STACK_BYTES = 0x7FFF_FFFF_0000, 8 << 20
MAPPINGS = 0x4000_0000_0000
HEAP_BYTES = 1 << 30
HWCAP_FP_ASIMD = 0b11
AUXILIARY = {"PHDR": 3, "PHENT": 4, "PHNUM": 5, "PAGESZ": 6, "ENTRY": 9, "HWCAP": 16, "RANDOM": 25, "END": 0}
ENOENT, EBADF, EINVAL, ENOTTY, ENOSYS = 2, 9, 22, 25, 38  # errno of arm64 Linux
OPEN_FLAGS = {0o1: os.O_WRONLY, 0o2: os.O_RDWR, 0o100: os.O_CREAT, 0o1000: os.O_TRUNC, 0o2000: os.O_APPEND}
LONGEST_TEXT = 4096
# The exit code when the program did not come to its end (EX_SOFTWARE of sysexits.h).
STOPPED = 70
CPUS = {
    "cortex-a53": arm.UC_CPU_ARM64_A53,
    "cortex-a57": arm.UC_CPU_ARM64_A57,
    "cortex-a72": arm.UC_CPU_ARM64_A72,
    "max": arm.UC_CPU_ARM64_MAX,
}


class Exit(Exception):
    """The program called exit."""


class Machine:
    """One process: its memory, its open files and its system calls."""

    def __init__(self, cpu: str):
        self.cpu = Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        # A core that Unicorn does not know gets the one with every extension.
        self.cpu.ctl_set_cpu_model(CPUS.get(cpu, arm.UC_CPU_ARM64_MAX))
        self.files: dict[int, int] = {0: 0, 1: 1, 2: 2}
        self.mapped = 0
        self.heap_start = self.heap_end = self.heap_limit = 0
        self.next_mapping = MAPPINGS
        self.status: int | None = None
        self.refused: list[int] = []
        self.cpu.hook_add(unicorn.UC_HOOK_INTR, self.on_interrupt)

    # -------------------------------------------------------------- loading

    def load(self, program: Path, arguments: list[str]) -> int:
        """Map a static ELF file and its stack -> the address of its first instruction."""
        image = program.read_bytes()
        if image[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", image, 16) != (2, 183):
            sys.exit(f"{program}: not a static 64-bit ARM executable")
        entry, table = struct.unpack_from("<QQ", image, 24)
        entry_bytes, entries = struct.unpack_from("<HH", image, 54)
        headers = [struct.unpack_from("<IIQQQQQQ", image, table + i * entry_bytes) for i in range(entries)]
        segments = [header for header in headers if header[0] == 1]
        self.map_segments(image, segments)
        in_memory = next((a + table - o for _, _, o, a, _, n, _, _ in segments if o <= table < o + n), 0)
        auxiliary = {"PHDR": in_memory, "PHENT": entry_bytes, "PHNUM": entries, "ENTRY": entry}
        self.build_stack([str(program), *arguments], auxiliary)
        return entry

    def map_segments(self, image: bytes, segments: list[tuple]) -> None:
        """All segments lie in one mapping, since two may share a page."""
        low = min(address for _, _, _, address, _, _, _, _ in segments) // PAGE * PAGE
        high = max(address + memory for _, _, _, address, _, _, memory, _ in segments)
        self.map(low, high - low)
        for _, _, offset, address, _, stored, _, _ in segments:
            self.cpu.mem_write(address, image[offset : offset + stored])
        self.heap_start = self.heap_end = self.heap_limit = (high + PAGE - 1) // PAGE * PAGE

    def build_stack(self, arguments: list[str], auxiliary: dict[str, int]) -> None:
        self.map(STACK_TOP - STACK_BYTES, STACK_BYTES)
        at, pointers = STACK_TOP, []
        for text in arguments:
            at -= len(text.encode()) + 1
            self.cpu.mem_write(at, text.encode() + b"\0")
            pointers.append(at)
        random = at - 16
        self.cpu.mem_write(random, bytes(range(16)))
        auxiliary = {"PAGESZ": PAGE, "HWCAP": HWCAP_FP_ASIMD, "RANDOM": random, **auxiliary, "END": 0}
        words = [len(pointers), *pointers, 0, 0]
        words += [word for key, value in auxiliary.items() for word in (AUXILIARY[key], value)]
        stack = (random - 8 * len(words)) // 16 * 16
        self.cpu.mem_write(stack, struct.pack(f"<{len(words)}Q", *words))
        self.cpu.reg_write(arm.UC_ARM64_REG_SP, stack)

    def map(self, address: int, size: int) -> None:
        size = (size + PAGE - 1) // PAGE * PAGE
        self.cpu.mem_map(address, size)
        self.mapped += size

    # -------------------------------------------------------------- running

    def run(self, entry: int) -> int:
        try:
            self.cpu.emu_start(entry, 0)
        except UcError as e:
            at = self.cpu.reg_read(arm.UC_ARM64_REG_PC)
            numbers = ", ".join(map(str, self.refused)) or "none"
            print(f"unicorn: {e} at address {at:#x}; system calls not emulated: {numbers}", file=sys.stderr)
        return STOPPED if self.status is None else self.status

    def on_interrupt(self, _cpu, _number, _data) -> None:
        """Linux's calling convention: number in x8, arguments in x0 to x5, result in x0."""
        number = self.cpu.reg_read(arm.UC_ARM64_REG_X8)
        arguments = [self.cpu.reg_read(arm.UC_ARM64_REG_X0 + i) for i in range(6)]
        call = SYSTEM_CALLS.get(number)
        try:
            result = call(self, *arguments) if call else self.refuse(number)
        except OSError as e:
            result = -(e.errno or EINVAL)
        except Exit:
            self.cpu.emu_stop()
            return
        self.cpu.reg_write(arm.UC_ARM64_REG_X0, result & (1 << 64) - 1)

    # -------------------------------------------------------------- system calls: arguments x0 to x5 -> x0

    def refuse(self, number: int) -> int:
        """As an old kernel does: the C library then goes another way, or says what it cannot do."""
        self.refused.append(number)
        return -ENOSYS

    def text(self, address: int) -> str:
        content = b""
        while b"\0" not in content and len(content) < LONGEST_TEXT:
            content += bytes(self.cpu.mem_read(address + len(content), 16 - (address + len(content)) % 16))
        return content.split(b"\0")[0].decode()

    def file(self, number: int) -> int:
        if number not in self.files:
            raise OSError(EBADF, "not open")
        return self.files[number]

    def openat(self, _folder, path, flags, mode, *_) -> int:
        name = self.text(path)
        if name.startswith("/proc/self"):
            raise OSError(ENOENT, "the emulated process is not listed")
        host_flags = sum(host for bit, host in OPEN_FLAGS.items() if flags & bit)
        number = max(self.files) + 1
        self.files[number] = os.open(name, host_flags, mode)
        return number

    def close(self, number, *_) -> int:
        os.close(self.file(number))
        del self.files[number]
        return 0

    def lseek(self, number, offset, whence, *_) -> int:
        return os.lseek(self.file(number), signed(offset), whence)

    def read(self, number, address, count, *_) -> int:
        content = os.read(self.file(number), count)
        self.cpu.mem_write(address, content)
        return len(content)

    def readv(self, number, vector, pieces, *_) -> int:
        total = 0
        for address, count in self.vector(vector, pieces):
            done = self.read(number, address, count) if count else 0
            total += done
            if done < count:
                break
        return total

    def write(self, number, address, count, *_) -> int:
        return os.write(self.file(number), bytes(self.cpu.mem_read(address, count)))

    def writev(self, number, vector, pieces, *_) -> int:
        return sum(self.write(number, address, count) for address, count in self.vector(vector, pieces) if count)

    def vector(self, address: int, pieces: int) -> list[tuple[int, int]]:
        words = struct.unpack(f"<{2 * pieces}Q", self.cpu.mem_read(address, 16 * pieces))
        return list(zip(words[::2], words[1::2], strict=True))

    def fstat(self, number, address, *_) -> int:
        return self.put_stat(os.fstat(self.file(number)), address)

    def newfstatat(self, number, path, address, *_) -> int:
        name = self.text(path)
        return self.put_stat(os.stat(name) if name else os.fstat(self.file(number)), address)

    def put_stat(self, s: os.stat_result, address: int) -> int:
        fields = struct.pack(
            "<QQIIIIQQqiiq", s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, 0, 0, s.st_size, PAGE, 0,
            -(-s.st_size // 512),
        )  # fmt: skip
        self.cpu.mem_write(address, fields.ljust(128, b"\0"))
        return 0

    def brk(self, end, *_) -> int:
        if self.heap_start <= end <= self.heap_start + HEAP_BYTES:
            if end > self.heap_limit:
                grown = (end - self.heap_limit + PAGE - 1) // PAGE * PAGE
                self.map(self.heap_limit, grown)
                self.heap_limit += grown
            self.heap_end = end
        return self.heap_end

    def mmap(self, _address, size, _protection, flags, *_) -> int:
        if not flags & 0x20:  # MAP_ANONYMOUS: the runner reads its files, it does not map them
            raise OSError(EINVAL, "files cannot be mapped")
        start = self.next_mapping
        size = (size + PAGE - 1) // PAGE * PAGE
        self.map(start, size)
        self.next_mapping += size + PAGE
        return start

    def munmap(self, address, size, *_) -> int:
        size = (size + PAGE - 1) // PAGE * PAGE
        self.cpu.mem_unmap(address, size)
        self.mapped -= size
        return 0

    def clock_gettime(self, _clock, address, *_) -> int:
        self.cpu.mem_write(address, struct.pack("<QQ", *divmod(time.monotonic_ns(), 1_000_000_000)))
        return 0

    def getrusage(self, _who, address, *_) -> int:
        """Of all counts only the memory is known: what is mapped, in KiB."""
        self.cpu.mem_write(address, struct.pack("<4qq", 0, 0, 0, 0, self.mapped >> 10).ljust(144, b"\0"))
        return 0

    def getrandom(self, address, count, *_) -> int:
        self.cpu.mem_write(address, bytes(count))
        return count

    def exit(self, status, *_) -> int:
        self.status = status & 255
        raise Exit

    def nothing(self, *_) -> int:
        return 0

    def one(self, *_) -> int:
        return 1

    def no_terminal(self, *_) -> int:
        return -ENOTTY


def signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


# The numbers of include/uapi/asm-generic/unistd.h. What only prepares for signals and threads does nothing.
SYSTEM_CALLS: dict[int, Callable[..., int]] = {
    29: Machine.no_terminal,  # ioctl
    56: Machine.openat,
    57: Machine.close,
    62: Machine.lseek,
    63: Machine.read,
    64: Machine.write,
    65: Machine.readv,
    66: Machine.writev,
    79: Machine.newfstatat,
    80: Machine.fstat,
    93: Machine.exit,
    94: Machine.exit,  # exit_group
    96: Machine.one,  # set_tid_address
    98: Machine.nothing,  # futex
    99: Machine.nothing,  # set_robust_list
    113: Machine.clock_gettime,
    134: Machine.nothing,  # rt_sigaction
    135: Machine.nothing,  # rt_sigprocmask
    165: Machine.getrusage,
    172: Machine.one,  # getpid
    178: Machine.one,  # gettid
    214: Machine.brk,
    215: Machine.munmap,
    222: Machine.mmap,
    226: Machine.nothing,  # mprotect
    233: Machine.nothing,  # madvise
    278: Machine.getrandom,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a static aarch64 Linux program on Unicorn.")
    parser.add_argument("--cpu", default="max")
    parser.add_argument("program", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    machine = Machine(options.cpu)
    return machine.run(machine.load(options.program, options.arguments))


if __name__ == "__main__":
    sys.exit(main())
