"""TVM's threads, without what they do to the thread that starts them.

TVM has a pool for each thread that runs kernels, and binds to cores of its own choice not only the pool's threads but
also that one, whatever it was bound to before. Threads that PyTorch starts later would inherit that, and a target that
counts this process's cores would find fewer.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tvm


def set_threads(count: int) -> None:
    """How many threads TVM's pool of this thread may use."""
    with _same_cores():
        tvm.get_global_func("runtime.config_threadpool")(1, count)


def start_pool() -> None:
    """Make the pool of this thread, if it has none."""
    if not _pool.started:
        with _same_cores():
            tvm.get_global_func("runtime.NumThreads")()
        _pool.started = True


class _Pool(threading.local):
    started = False


_pool = _Pool()


@contextmanager
def _same_cores() -> Iterator[None]:
    """The cores that this thread may run on are the same afterwards."""
    if not hasattr(os, "sched_getaffinity"):  # only Linux has it, and only there does TVM bind threads
        yield
        return
    cores = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
