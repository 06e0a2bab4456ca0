"""Machine code from CUDA C, by each compiler that this machine has; NVRTC's wheels are part of the test environment."""

import pytest

from planish.backends.tvm import cubin, cuda_compiler
from planish.backends.tvm.cuda_compiler import Compiler, compile_cubin, find_compiler, find_nvcc
from planish.ir.errors import BuildError, UsageError

COMPILERS = ["nvrtc", *(["nvcc"] if find_nvcc() else [])]
SOURCE = """
#ifdef __CUDACC_RTC__
#include <cuda/std/cstdint>
#else
#include <cstdint>
#endif
#include <cuda_fp16.h>
extern "C" __global__ void __launch_bounds__(32) doubles(float* out, const half* in) {
  out[threadIdx.x] = 2.0f * __half2float(in[threadIdx.x]);
}
"""


@pytest.fixture(scope="module", params=COMPILERS)
def compiler(request) -> Compiler:
    return find_compiler(request.param)


@pytest.mark.parametrize("arch", ["sm_80", "sm_87", "sm_90"])
def test_machine_code_is_for_the_architecture_that_was_asked_for(compiler, arch):
    code = compile_cubin(SOURCE, arch, compiler)
    assert cubin.architecture(code) == arch
    assert [kernel.name for kernel in cubin.kernels(code)] == ["doubles"]


def test_the_bytes_are_the_same_every_time(compiler):
    assert compile_cubin(SOURCE, "sm_80", compiler) == compile_cubin(SOURCE, "sm_80", compiler)


def test_a_mistake_in_the_source_is_shown(compiler):
    with pytest.raises(BuildError, match=rf"(?s){compiler.version} could not compile the kernels for sm_80.*doubled"):
        compile_cubin(SOURCE.replace("2.0f", "doubled"), "sm_80", compiler)


def test_an_architecture_that_the_compiler_does_not_know(compiler):
    with pytest.raises(BuildError, match="could not compile the kernels for sm_11"):
        compile_cubin(SOURCE, "sm_11", compiler)


def test_machine_code_for_another_architecture_is_refused(compiler):
    class AlwaysForA100:
        version = compiler.version

        def __call__(self, source: str, arch: str) -> bytes:
            return compiler(source, "sm_80")

    with pytest.raises(BuildError, match="made machine code for sm_80; expected sm_90"):
        compile_cubin(SOURCE, "sm_90", AlwaysForA100())


def test_nvcc_comes_first(monkeypatch):
    assert find_compiler().version.startswith(COMPILERS[-1])
    monkeypatch.setattr(cuda_compiler, "find_nvcc", lambda: None)
    assert find_compiler().version.startswith("nvrtc")


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cuda_compiler, "find_nvcc", lambda: None)
    with pytest.raises(BuildError, match=r"no nvcc on PATH.*install a CUDA toolkit"):
        find_compiler("nvcc")
    monkeypatch.setattr(cuda_compiler.importlib.util, "find_spec", lambda name: None)
    for name in ("auto", "nvrtc"):
        with pytest.raises(BuildError, match=r"no CUDA compiler here .*pip install 'planish\[cuda\]'"):
            find_compiler(name)
    with pytest.raises(BuildError, match="CUDA's headers are not installed"):
        cuda_compiler.wheel_headers()


def test_an_unknown_compiler_is_refused():
    with pytest.raises(UsageError, match="the compiler 'clang' is unknown; expected 'auto', 'nvcc' or 'nvrtc'"):
        find_compiler("clang")
