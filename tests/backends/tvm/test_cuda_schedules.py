"""Which kernels get one thread for each output, as TVM's own analysis of the scheduled code shows."""

import numpy as np
import pytest
import torch
from cuda_emulator import emulator
from torch import nn

from planish.backends.tvm.cuda import build_cuda, relax_module
from planish.backends.tvm.cuda_schedules import THREADS_PER_BLOCK


def kernels(model: nn.Module, *shapes: tuple[int, ...]) -> dict[str, int]:
    """Kernel -> threads per block."""
    program = torch.export.export(model.eval(), tuple(torch.zeros(shape) for shape in shapes))
    return {kernel.name: kernel.threads for kernel in build_cuda(relax_module(program), arch="sm_80").kernels}


@pytest.mark.parametrize("size", [3, 5])
def test_a_depthwise_convolution_is_one_kernel_with_what_follows(size):
    model = nn.Sequential(nn.Conv2d(24, 24, size, groups=24), nn.ReLU6())
    assert list(kernels(model, (1, 24, 20, 20)).values()) == [THREADS_PER_BLOCK]


def test_pooling_windows_and_elementwise_kernels():
    model = nn.Sequential(nn.MaxPool2d(3, 2), nn.Hardswish())
    assert set(kernels(model, (1, 24, 20, 20)).values()) == {THREADS_PER_BLOCK}


def test_a_dense_convolution_stays_a_tiled_matrix_product():
    (threads,) = kernels(nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU()), (1, 16, 14, 14)).values()
    assert threads == 128


class Sums(nn.Module):
    def forward(self, x):
        return x.sum(-1)


@pytest.mark.parametrize(("length", "split"), [(32, False), (33, True), (1000, True)])
def test_a_reduction_longer_than_a_warp_is_split_between_threads(length, split):
    program = torch.export.export(Sums(), (torch.zeros(64, length),))
    source = build_cuda(relax_module(program), arch="sm_80").source
    kernel = source[source.rindex("__global__") :]
    assert ("__shfl" in kernel or "__syncthreads" in kernel) == split


def test_several_reductions_in_one_kernel_are_left_to_tvm():
    assert list(kernels(nn.Softmax(-1), (64, 10))) == ["softmax_kernel"]


def test_padding_at_the_end_of_an_axis_is_not_fused_behind_a_convolution():
    model = nn.Sequential(nn.Conv2d(40, 64, 1), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)))
    made = kernels(model, (1, 40, 14, 14))
    assert sorted(name.partition("_kernel")[0] for name in made) == ["fused_conv2d_add_relu", "pad"]


class Gate(nn.Module):
    """What scales the map is smaller than the map: squeeze and excitation."""

    def __init__(self, wide: int):
        super().__init__()
        self.conv = nn.Conv2d(wide, 16, 1)

    def forward(self, squeezed, x):
        return x * torch.sigmoid(self.conv(squeezed))


@pytest.mark.parametrize("wide", [8, 100])
def test_an_epilogue_larger_than_its_convolution_is_computed_whole(wide):
    torch.manual_seed(0)
    model, inputs = Gate(wide).eval(), (torch.randn(1, wide, 1, 1), torch.randn(1, 16, 9, 9))
    build = build_cuda(relax_module(torch.export.export(model, inputs)), arch="sm_80")
    (output,) = emulator.run(build, *(x.numpy() for x in inputs))
    with torch.no_grad():
        wanted = model.double()(*(x.double() for x in inputs)).numpy()
    # Sums of up to 100 products of numbers below 4, in float32.
    np.testing.assert_allclose(output, wanted, atol=1e-5)
