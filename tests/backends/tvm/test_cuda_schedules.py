"""Which kernels get one thread for each output, as TVM's own analysis of the scheduled code shows."""

import pytest
import torch
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
