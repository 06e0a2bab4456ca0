"""The emulated device is only worth something if it fails where a GPU would: kernels with a defect put in by hand."""

import signal
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cuda_emulator import emulator
from torch import nn

from planish.backends.tvm.cuda import CudaBuild, build_cuda, relax_module

BARRIER = "__syncthreads();"
SHAPE, OUTPUTS = (1, 300), 60


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """240 threads a block sum its products in shared memory, with a barrier before each of four halvings."""
    torch.manual_seed(0)
    return nn.Linear(SHAPE[1], OUTPUTS).eval()


@pytest.fixture(scope="module")
def image_input() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


@pytest.fixture(scope="module")
def build(model) -> CudaBuild:
    return build_cuda(relax_module(torch.export.export(model, (torch.zeros(SHAPE),))), arch="sm_80")


@pytest.fixture(scope="module")
def expected(model, image_input) -> np.ndarray:
    result = model.double()(torch.from_numpy(image_input).double()).detach().numpy()
    model.float()
    return result


def without_barrier(which: int) -> Callable[[str], str]:
    def change(source: str) -> str:
        pieces = source.split(BARRIER)
        return BARRIER.join(pieces[: which + 1]) + BARRIER.join(["", *pieces[which + 1 :]])[len(BARRIER) :]

    return change


def behind_the_output(source: str, elements: int) -> str:
    """Also write `elements` behind the last number of the output, which is the first parameter."""
    output = source.partition("(float* __restrict__ ")[2].partition(",")[0]
    return source.replace(BARRIER, f"{output}[{OUTPUTS - 1 + elements}] = 0.0f; {BARRIER}", 1)


# These come between a thread's writing a sum and another's reading it; the first and the last barrier separate nothing.
WRONG_NUMBERS = {"after the products": without_barrier(1), "before the last sum": without_barrier(4)}

REFUSED: dict[str, tuple[Callable[[str], str], str]] = {
    "barrier that some threads pass": (
        lambda s: s.replace(BARRIER, f"if (((int)threadIdx.x) < 3) {{ {BARRIER} }}", 1),
        "barrier divergence",
    ),
    "thread that returns before a barrier": (
        lambda s: s.replace(BARRIER, f"if (((int)threadIdx.x) == 3) return; {BARRIER}", 1),
        "some threads of the block returned before a barrier",
    ),
    "shuffle that waits for a lane at a barrier": (
        lambda s: s.replace(BARRIER, f"if (((int)threadIdx.x) == 3) __shfl_sync(~0u, 1, 0, 32); {BARRIER}", 1),
        "the threads of the block wait at different places",
    ),
    "read far outside": (lambda s: s.replace("input_ptr[(", "input_ptr[(100000000 + "), "illegal address"),
    # 60 numbers are 240 bytes; buffers are aligned to 256, and there the closed page begins.
    "write behind the page": (lambda s: behind_the_output(s, 5), "illegal address: byte 256 of a buffer of 240"),
    "write one number behind a buffer": (lambda s: behind_the_output(s, 1), "a thread wrote outside of a buffer"),
    "shared array that is too short": (
        lambda s: emulator.SHARED_ARRAY.sub(lambda m: m[0].replace(m["size"], str(int(m["size"]) - 8)), s, count=1),
        "a thread wrote behind the end of a shared array",
    ),
    "more threads than the launch bounds": (
        lambda s: s.replace("__launch_bounds__(240)", "__launch_bounds__(64)"),
        "more threads than the kernel's launch bounds",
    ),
}


@pytest.fixture(scope="module")
def outcomes(build, image_input) -> dict[str, list[np.ndarray] | str]:
    """Every defect in one process, and a sound kernel last: a failed launch leaves the device usable.

    Before them is what a GPU would be given.
    """
    changes = WRONG_NUMBERS | {name: change for name, (change, _) in REFUSED.items()} | {"none": lambda source: source}
    images = {}
    for name, change in changes.items():
        changed = change(build.source)
        assert (changed == build.source) == (name == "none"), name
        images[name] = emulator.kernel_image(changed)
    images = {"machine code": build.cubin, **images}
    return dict(zip(images, emulator.run_each(build, list(images.values()), [image_input]), strict=True))


@pytest.mark.parametrize("defect", WRONG_NUMBERS)
def test_a_dropped_barrier_changes_the_numbers(outcomes, expected, defect):
    (output,) = outcomes[defect]
    assert not np.allclose(output, expected, atol=1e-3)


@pytest.mark.parametrize("defect", REFUSED)
def test_a_launch_with_a_defect_is_refused(outcomes, defect):
    assert isinstance(outcomes[defect], str)
    assert "CUDA_ERROR_LAUNCH_FAILED in fused_matmul_add_kernel" in outcomes[defect]
    assert REFUSED[defect][1] in outcomes[defect]


def test_sound_kernels_run_after_failed_ones(outcomes, expected):
    (output,) = outcomes["none"]
    # 300 products of numbers near 0.06, summed in float32.
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_the_order_of_threads_does_not_matter(build, image_input, outcomes):
    """In reverse, with shuffles: tests/backends/tvm/test_cuda.py."""
    (output,) = emulator.run(build, image_input, order="random")
    np.testing.assert_array_equal(output, outcomes["none"][0])


def test_machine_code_for_a_gpu_is_refused(outcomes):
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in outcomes["machine code"]


def test_the_host_cannot_touch_device_memory():
    script = f"""
import ctypes
device = ctypes.CDLL("{emulator.device_libraries()}/{emulator.RUNTIME}")
buffer, numbers = ctypes.c_void_p(), (ctypes.c_float * 4)(1, 2, 3, 4)
device.cudaMalloc(ctypes.byref(buffer), ctypes.c_size_t(16))
device.cudaMemcpyAsync(buffer, numbers, ctypes.c_size_t(16), 0, None)
back = (ctypes.c_float * 4)()
device.cudaMemcpyAsync(back, buffer, ctypes.c_size_t(16), 0, None)
assert list(back) == [1, 2, 3, 4]
print("copied", flush=True)
ctypes.c_float.from_address(buffer.value).value
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("copied\n", -signal.SIGSEGV), done.stderr


def test_source_in_a_form_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"recognised 0 kernels of 0\.5"):
        emulator.translate('extern "C" __global__ void kernel(float* out) {}\n')
