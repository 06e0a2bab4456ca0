"""The emulated CUDA device from Python: its two libraries, kernel images, and a process that runs a saved build on it.

The device has to be in a process before TVM is (TVM looks for a CUDA driver once, when it is imported), and a kernel
with a defect must not take pytest down with it, so one process imports TVM, and every run is a child of it.
"""

import atexit
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from planish.backends.tvm.cuda import CudaBuild
from planish.backends.tvm.cuda_compiler import header_folders

HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / f"planish-cuda-emulator-{os.getuid()}"
RUNTIME, DRIVER = "libcudart.so.13", "libcuda.so.1"
# No fused multiply-add and no strict aliasing: what the source says, in its order, as far as a compiler can.
# Fortified longjmp takes a jump to another stack for an attack.
OPTIONS = ["-std=c++20", "-O1", "-w", "-fPIC", "-shared"]
OPTIONS += ["-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"]

KERNEL = re.compile(
    r'extern "C" __global__ void __launch_bounds__\((?P<threads>\d+)\) (?P<name>\w+)\([^)]*\) \{\n(?P<body>.*?)\n\}\n',
    re.DOTALL,
)
SHARED_ARRAY = re.compile(r"__shared__ (?:alignas\(\d+\) )?(?P<type>\w+) (?P<name>\w+)\[(?P<size>\d+)\];")
WAITING = re.compile(r"__syncthreads|__syncwarp|__shfl|__activemask|__shared__")


class EmulatorError(Exception):
    """The emulated device refused a launch, or the process that ran it failed. The text is what it printed."""


def run(build: CudaBuild, *inputs: np.ndarray, order: str = "forward", image: bytes | None = None) -> list[np.ndarray]:
    """What `build` computes on the emulated device, through TVM's CUDA runtime and `CudaLibrary`.

    order: of the threads of a block, `"forward"`, `"reverse"` or `"random"`. image: device code to load in the place of
    the build's own kernels. Raises EmulatorError when a launch fails.
    """
    (outcome,) = run_each(build, [image or kernel_image(build.source)], inputs, order=order)
    if isinstance(outcome, str):
        raise EmulatorError(outcome)
    return outcome


def run_each(
    build: CudaBuild, images: Sequence[bytes], inputs: Sequence[np.ndarray], *, order: str = "forward"
) -> list[list[np.ndarray] | str]:
    """For each of several images in the place of the build's kernels: its outputs, or the error that TVM raised."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        np.savez(room / "inputs.npz", *inputs)
        for index, image in enumerate(images):
            replace(build, cubin=image).save(room / f"{index}.so")
        code = _answer(_device(), [folder, len(images), order])
        if code:
            raise EmulatorError(f"the process ended with {code}:\n{(room / 'printed.txt').read_text()}")
        return [_outcome(room, index) for index in range(len(images))]


@cache
def _device() -> subprocess.Popen:
    """The process of `run_library.py`, started once; it ends with this one."""
    command = [sys.executable, HERE / "run_library.py", device_libraries()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)
    return process


def _answer(process: subprocess.Popen, request: list) -> int:
    """The exit code of one run."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise EmulatorError(f"{process.args} ended with {process.wait()}")
    return int(answer)


def _outcome(room: Path, index: int) -> list[np.ndarray] | str:
    error = room / f"{index}.txt"
    if error.exists():
        return error.read_text()
    with np.load(room / f"{index}.npz") as outputs:
        return [outputs[name] for name in outputs.files]


def device_libraries() -> Path:
    """The folder with the emulated driver and runtime, built once for each version of their sources."""
    content = [(HERE / name).read_bytes() for name in ("device_state.h", "driver.cpp", "runtime.cpp")]
    content.append(repr((OPTIONS, header_folders())).encode())
    folder = CACHE / hashlib.sha256(b"".join(content)).hexdigest()[:16]
    if not folder.is_dir():
        CACHE.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as room:
            draft = Path(room) / "device"
            draft.mkdir()
            _build_libraries(draft)
            try:
                draft.rename(folder)
            except OSError:
                # Another test process may have been faster; its folder holds the same.
                if not folder.is_dir():
                    raise
    return folder


def kernel_image(source: str) -> bytes:
    """CUDA C as a shared object for this machine, which the emulated driver loads as it would a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernels.cpp").write_text(translate(source))
        _compile([Path(folder) / "kernels.cpp", "-include", HERE / "device.h", "-o", Path(folder) / "kernels.so"])
        return (Path(folder) / "kernels.so").read_bytes()


def translate(source: str) -> str:
    """TVM's CUDA C as C++: shared arrays become places in the emulated shared memory, and every kernel is announced."""
    announced = []

    def kernel(match: re.Match) -> str:
        announced.append(_announcement(match))
        offset = ["0"]

        def shared_array(array: re.Match) -> str:
            of = f"{array['type']}, {array['size']}"
            place = offset[0]
            offset[0] += f" + emulator::room<{of}>()"
            return f"{array['type']} (&{array['name']})[{array['size']}] = emulator::shared_array<{of}>({place});"

        return SHARED_ARRAY.sub(shared_array, match[0])

    translated = KERNEL.sub(kernel, source)
    if source.count("__global__") != 2 * len(announced):
        # TVM declares every kernel and then defines it.
        raise ValueError(f"recognised {len(announced)} kernels of {source.count('__global__') / 2:g}")
    return translated + "\n".join(announced) + "\n"


def _announcement(match: re.Match) -> str:
    waits = "true" if WAITING.search(match["body"]) else "false"
    offset, arrays = "0", []
    for array in SHARED_ARRAY.finditer(match["body"]):
        arrays.append(f"{{{offset}, sizeof({array['type']}[{array['size']}])}}")
        offset += f" + emulator::room<{array['type']}, {array['size']}>()"
    return f"EMULATED_KERNEL({', '.join([match['name'], match['threads'], waits, *arrays])})"


def _build_libraries(folder: Path) -> None:
    """TVM asks for the runtime's functions by version, so the library has to declare one."""
    (folder / "versions.map").write_text(f"{RUNTIME} {{ global: cuda*; emulator_*; local: *; }};\n")
    versions = f"-Wl,--version-script={folder / 'versions.map'}"
    _compile([HERE / "runtime.cpp", f"-Wl,-soname,{RUNTIME}", versions, "-o", folder / RUNTIME])
    _compile(
        [HERE / "driver.cpp", f"-Wl,-soname,{DRIVER}", folder / RUNTIME, "-Wl,-rpath,$ORIGIN", "-o", folder / DRIVER]
    )


def compiler() -> list[str]:
    """g++ where it is, zig from PyPI anywhere else."""
    if shutil.which("g++"):
        return ["g++"]
    # zig checks for undefined behaviour by default, and fast-moving fibers look like it.
    return [sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=undefined"]


def _compile(arguments: list) -> None:
    include = [f"-I{folder}" for folder in header_folders()]
    done = subprocess.run([*compiler(), *OPTIONS, *include, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise EmulatorError(done.stderr)
