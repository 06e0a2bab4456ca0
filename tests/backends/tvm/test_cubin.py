"""What is read from a cubin, against what ptxas prints while it makes it."""

import importlib
import re
from typing import Any

import pytest

from planish.backends.tvm import cubin
from planish.backends.tvm.cuda_compiler import Nvrtc
from planish.ir.errors import BuildError

nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")

ARCHITECTURES = ("sm_80", "sm_87", "sm_90", "sm_120")

# One kernel that shares an array, one that indexes a local one by a variable, one that does neither.
SOURCE = """
extern "C" __global__ void __launch_bounds__(128) shares(float* out, const float* in) {
  __shared__ float tile[512];
  for (int i = 0; i < 4; i++) tile[threadIdx.x * 4 + i] = in[threadIdx.x * 4 + i];
  __syncthreads();
  out[threadIdx.x] = tile[(threadIdx.x * 37) % 512] + tile[511 - threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(64) indexes(float* out, const int* where, int n) {
  float values[40];
  for (int i = 0; i < 40; i++) values[i] = out[i * n];
  for (int i = 0; i < n; i++) values[where[i]] += values[where[i + n]];
  for (int i = 0; i < 40; i++) out[i * n] = values[i];
}
extern "C" __global__ void __launch_bounds__(256) scales(float* out) { out[threadIdx.x] *= 2.0f; }
"""


def ptxas_report(arch: str) -> dict[str, tuple[int, int, int]]:
    """Kernel -> (registers, shared bytes, stack frame bytes), from the log of NVRTC's ptxas."""
    _, program = nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"kernels.cu", 0, None, None)
    options = [f"--gpu-architecture={arch}".encode(), b"--ptxas-options=--verbose"]
    assert nvrtc.nvrtcCompileProgram(program, len(options), options)[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    report = {}
    for entry in log.decode().split("Compiling entry function")[1:]:
        name = re.search(r"'(\w+)'", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        frame = re.search(r"(\d+) bytes stack frame", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        assert name and registers and frame
        report[name[1]] = (int(registers[1]), int(shared[1]) if shared else 0, int(frame[1]))
    return report


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_resources_are_those_that_ptxas_reports(arch):
    code = Nvrtc()(SOURCE, arch)
    assert cubin.architecture(code) == arch
    found = {kernel.name: (kernel.registers, kernel.shared_bytes, kernel.local_bytes) for kernel in cubin.kernels(code)}
    assert found == ptxas_report(arch)
    assert found["shares"][1] == 512 * 4
    assert found["indexes"][2] >= 40 * 4


def test_threads_are_the_launch_bounds():
    threads = {kernel.name: kernel.threads for kernel in cubin.kernels(Nvrtc()(SOURCE, "sm_80"))}
    assert threads == {"shares": 128, "indexes": 64, "scales": 256}


@pytest.mark.parametrize("data", [b"", b"not an ELF file at all, but long enough to be one: " * 4])
def test_other_files_are_refused(data):
    with pytest.raises(BuildError, match="cubin: the file starts with"):
        cubin.kernels(data)


def test_a_host_library_is_refused():
    with open("/proc/self/exe", "rb") as program, pytest.raises(BuildError, match="expected an ELF file for a CUDA"):
        cubin.architecture(program.read(4096))
