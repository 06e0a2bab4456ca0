"""Linux gives a process Intel's matrix unit (AMX) only when it asks: its registers make every signal frame larger."""

import ctypes
import platform
import sys
from functools import cache

_ARCH_PRCTL = 158  # system call number on x86-64
_REQUEST_PERMISSION = 0x1023  # ARCH_REQ_XCOMP_PERM
_TILE_DATA = 18  # XFEATURE_XTILEDATA


@cache
def is_granted() -> bool:
    """Ask for this process and all its threads, once.

    Source: the Linux kernel's documentation, "Using XSTATE features in user space applications".
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0
