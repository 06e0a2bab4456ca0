"""Run saved CUDA builds on the emulated device: run_library.py DEVICE_FOLDER FOLDER COUNT

FOLDER has inputs.npz and the libraries 0.so, 1.so, ...; for each it gets N.npz, or N.txt with the error.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

device, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
for name in ("libcudart.so.13", "libcuda.so.1"):
    ctypes.CDLL(f"{device}/{name}", mode=ctypes.RTLD_GLOBAL)

# TVM looks for a CUDA driver when it is imported, so the device comes first.
from planish.backends.tvm.cuda import CudaLibrary  # noqa: E402

with np.load(folder / "inputs.npz") as arrays:
    inputs = [arrays[name] for name in arrays.files]
for index in range(count):
    try:
        # Naive memory: each tensor is a buffer of its own, so an access behind its end is seen.
        run = CudaLibrary(folder / f"{index}.so", memory="naive")
        np.savez(folder / f"{index}.npz", *run(*inputs))
    except RuntimeError as error:
        (folder / f"{index}.txt").write_text(str(error))
