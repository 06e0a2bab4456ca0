"""The process that has the emulated device: run_library.py DEVICE_FOLDER

It imports TVM once. Each line of its input is one run, a JSON list of a folder, a number of libraries and the order of
threads. A child does it, whose device is as new and which a kernel may crash; the child's exit code is the answer.

The folder has inputs.npz and the libraries 0.so, 1.so, ...; for each it gets N.npz, or N.txt with the error, and
printed.txt has what the child printed.
"""

import ctypes
import json
import os
import sys
import traceback
from pathlib import Path

import numpy as np

for name in ("libcudart.so.13", "libcuda.so.1"):
    ctypes.CDLL(f"{sys.argv[1]}/{name}", mode=ctypes.RTLD_GLOBAL)

# TVM looks for a CUDA driver when it is imported, so the device comes first.
from planish.backends.tvm.cuda import CudaLibrary  # noqa: E402


def run(folder: Path, count: int) -> None:
    with np.load(folder / "inputs.npz") as arrays:
        inputs = [arrays[name] for name in arrays.files]
    for index in range(count):
        try:
            # Naive memory: each tensor is a buffer of its own, so an access behind its end is seen.
            library = CudaLibrary(folder / f"{index}.so", memory="naive")
            np.savez(folder / f"{index}.npz", *library(*inputs))
        except RuntimeError as error:
            (folder / f"{index}.txt").write_text(str(error))


def in_child(folder: Path, count: int, order: str) -> None:
    """Never returns: the child must not go on with what its parent was doing."""
    code = 1
    try:
        printed = os.open(folder / "printed.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.environ["CUDA_EMULATOR_ORDER"] = order
        run(folder, count)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


for line in sys.stdin:
    where, libraries, threads = json.loads(line)
    child = os.fork()
    if not child:
        in_child(Path(where), libraries, threads)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
