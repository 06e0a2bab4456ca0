"""From CUDA C to a cubin for one exact architecture: nvcc where a toolkit is installed, else NVRTC from PyPI.

Neither needs a GPU or a driver. TVM's own compile callback is not used: outside a `with target:` it takes the
architecture of a device, or its default, instead of the one that was asked for, and it turns fast-math on.
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Protocol

from ...ir.errors import BuildError, UsageError
from . import cubin

INSTALL = "pip install 'planish[cuda]'"


class Compiler(Protocol):
    """Turns CUDA C into a cubin. `version` names the compiler, e.g. `"nvcc 13.0.88"`."""

    version: str

    def __call__(self, source: str, arch: str) -> bytes: ...


class Nvcc:
    """nvcc of an installed CUDA toolkit."""

    def __init__(self, path: Path):
        self.path = path
        printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = "nvcc " + re.findall(r"V([\d.]+)", printed)[-1]

    def __call__(self, source: str, arch: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            # File names end up in the cubin: the same ones every time keep its bytes the same.
            (Path(folder) / "kernels.cu").write_text(source)
            options = ["-cubin", f"-arch={arch}", "-O3", "-std=c++17", "-w", "kernels.cu", "-o", "kernels.cubin"]
            done = subprocess.run([self.path, *options], cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise _failed(self.version, arch, done.stderr or done.stdout)
            return (Path(folder) / "kernels.cubin").read_bytes()


class Nvrtc:
    """NVRTC, the compiler as a library, from NVIDIA's wheels."""

    def __init__(self):
        self.library: Any = importlib.import_module("cuda.bindings.nvrtc")
        _, major, minor = self.library.nvrtcVersion()
        self.version = f"nvrtc {major}.{minor}"

    def __call__(self, source: str, arch: str) -> bytes:
        program = self._checked(self.library.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, None, None))
        folders = wheel_headers()
        options = [f"--gpu-architecture={arch}", "-default-device", "--std=c++17", "--disable-warnings"]
        options += [f"-I{folder}" for folder in folders]
        encoded = [option.encode() for option in options]
        try:
            if self.library.nvrtcCompileProgram(program, len(encoded), encoded)[0]:
                log = b" " * self._checked(self.library.nvrtcGetProgramLogSize(program))
                self.library.nvrtcGetProgramLog(program, log)
                raise _failed(self.version, arch, log.decode(errors="replace").rstrip("\0 \n"))
            code = b" " * self._checked(self.library.nvrtcGetCUBINSize(program))
            self._checked(self.library.nvrtcGetCUBIN(program, code))
            return code
        finally:
            self.library.nvrtcDestroyProgram(program)

    def _checked(self, answer: tuple) -> Any:
        status, *rest = answer
        if status:
            raise BuildError("cuda", f"{self.version} failed with {status.name}")
        return rest[0] if rest else None


def compile_cubin(source: str, arch: str, compiler: Compiler) -> bytes:
    """The cubin of `source` for `arch`.

    Raises BuildError when it does not compile, or when the machine code is for another architecture.
    """
    code = compiler(source, arch)
    made_for = cubin.architecture(code)
    if made_for != arch:
        raise BuildError("cuda", f"{compiler.version} made machine code for {made_for}", f"expected {arch}")
    return code


def find_compiler(name: str = "auto") -> Compiler:
    """`"nvcc"`, `"nvrtc"`, or `"auto"`: nvcc where it is installed, else NVRTC.

    Raises UsageError for another name and BuildError when the compiler is not on this machine.
    """
    if name not in ("auto", "nvcc", "nvrtc"):
        raise UsageError("cuda", f"the compiler {name!r} is unknown", "expected 'auto', 'nvcc' or 'nvrtc'")
    nvcc = find_nvcc()
    if nvcc and name != "nvrtc":
        return Nvcc(nvcc)
    if name != "nvcc" and _has_nvrtc():
        return Nvrtc()
    where = "no nvcc on PATH, in $CUDA_HOME or in /usr/local/cuda" if name != "nvrtc" else ""
    wheels = "no NVRTC wheels" if name != "nvcc" else ""
    cure = INSTALL if name != "nvcc" else "install a CUDA toolkit, or let compiler='auto' take NVRTC"
    raise BuildError("cuda", f"there is no CUDA compiler here ({', '.join(filter(None, (where, wheels)))})", cure)


def find_nvcc() -> Path | None:
    """nvcc on PATH, or of a toolkit at one of the usual places."""
    on_path = shutil.which("nvcc")
    places = [Path(on_path)] if on_path else [root / "bin" / "nvcc" for root in _toolkits()]
    return next((path for path in places if path.is_file()), None)


def header_folders() -> tuple[Path, ...]:
    """Folders with CUDA's headers: an installed toolkit's, or the wheels'. Raises BuildError when there are none."""
    for root in _toolkits():
        if (root / "include" / "cuda_runtime_api.h").is_file():
            return root / "include", root / "include" / "cccl"
    return wheel_headers()


def _toolkits() -> list[Path]:
    named = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [*named, Path("/usr/local/cuda")]


def wheel_headers() -> tuple[Path, ...]:
    """Folders with CUDA's headers from NVIDIA's wheels. Raises BuildError when they are not installed."""
    spec = importlib.util.find_spec("nvidia")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        for include in sorted(Path(package).glob("cu*/include"), reverse=True):
            if (include / "cuda.h").is_file() and (include / "crt").is_dir() and (include / "cccl").is_dir():
                return include, include / "cccl"
    raise BuildError("cuda", "CUDA's headers are not installed", INSTALL)


def _has_nvrtc() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings.nvrtc") is not None
    except ModuleNotFoundError:
        return False


def _failed(version: str, arch: str, log: str) -> BuildError:
    first = "\n".join(log.strip().splitlines()[:12])
    return BuildError("cuda", f"{version} could not compile the kernels for {arch}:\n{first}")
