"""Whole models for CUDA: real machine code for every GPU row, and numbers from an emulated device."""

import platform
from functools import cache

import efficientnet
import numpy as np
import pytest
import torch
import tvm
from cuda_emulator import emulator
from torch import nn

from planish.backends.target import Target
from planish.backends.tvm import cubin, cuda
from planish.backends.tvm.cuda import CudaBuild, CudaLibrary, build_cuda, relax_module
from planish.ir.errors import BuildError, UsageError
from planish.ir.specialize import fix_batch

GPU_ROWS = [name for name in Target.names() if name.startswith("cuda")]


def exported(model: nn.Module, *inputs: torch.Tensor, **options) -> tvm.IRModule:
    return relax_module(torch.export.export(model, inputs, **options))


class Small(nn.Module):
    """A convolution, a depthwise one, pooling and a head: what takes long with CUDA is the number of kernels.

    The channels are as odd as pruning leaves them.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 13, 3, padding=1), nn.Conv2d(13, 13, 3, 2, 1, groups=13)
        self.head = nn.Linear(13 * 4, 10)

    def forward(self, x):
        y = torch.relu(self.depthwise(torch.relu(self.conv(x))))
        return self.head(nn.functional.max_pool2d(y, 2).flatten(1))


@cache
def example() -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().eval(), torch.randn(2, 3, 8, 8)


def float64(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        output = model.double()(x.double()).numpy()
    model.float()
    return output


@pytest.fixture(scope="module")
def small() -> tvm.IRModule:
    return exported(*example())


@pytest.fixture(scope="module")
def build(small) -> CudaBuild:
    return build_cuda(small, arch="sm_80")


@pytest.mark.parametrize(("row", "compiler"), [*((row, "auto") for row in GPU_ROWS), (GPU_ROWS[-1], "nvrtc")])
def test_every_gpu_row_gets_a_library_with_its_own_machine_code(small, tmp_path, row, compiler):
    target = Target.get(row)
    made = build_cuda(small, arch=target.cuda_arch, triple=target.triple, cpu=target.cpu, compiler=compiler)
    assert cubin.architecture(made.cubin) == target.cuda_arch
    library = made.save(tmp_path / "model.so").read_bytes()
    assert library[18] == {"x86_64": 0x3E, "aarch64": 0xB7}[target.machine]
    assert library.count(made.cubin) == 1
    assert b"__global__" not in library
    assert list(tmp_path.iterdir()) == [tmp_path / "model.so"]


def test_the_library_is_the_same_every_time(small, build, tmp_path):
    first = build.save(tmp_path / "first.so").read_bytes()
    again = build_cuda(small, arch="sm_80").save(tmp_path / "elsewhere" / "again.so").read_bytes()
    assert first == again


def test_facts_list_every_kernel(build):
    facts = build.facts()
    assert facts["arch"] == "sm_80"
    assert facts["triple"] == f"{platform.machine()}-linux-gnu"
    assert len(facts["kernels"]) == build.source.count("__global__") / 2
    for kernel in facts["kernels"]:
        assert f"__launch_bounds__({kernel['threads']}) {kernel['name']}(" in build.source
        assert 0 < kernel["registers"] <= 255
        assert kernel["local_bytes"] == 0


# float32 against float64: sums of up to 1,000 products of numbers near 1, in a few layers.
def test_numbers_on_the_emulated_device(build):
    model, x = example()
    (output,) = emulator.run(build, x.numpy())
    np.testing.assert_allclose(output, float64(model, x), atol=1e-5, rtol=1e-5)


class EveryKindOfReduction(nn.Module):
    """Softmax and layer norm (shuffles and shared memory), windows, a long sum, several inputs and outputs."""

    def forward(self, x, y):
        windows = torch.nn.functional.max_pool2d(x, 3, 2, 1) + torch.nn.functional.avg_pool2d(y, 2)
        scores = torch.softmax(windows.flatten(2), -1)
        return scores, torch.nn.functional.layer_norm(x * torch.sigmoid(y), [16]), (x @ y).sum((1, 2, 3))


def test_reductions_on_the_emulated_device():
    generator = torch.Generator().manual_seed(2)
    model, inputs = EveryKindOfReduction(), [torch.randn(2, 5, 16, 16, generator=generator) for _ in range(2)]
    made = build_cuda(exported(model, *inputs), arch="sm_80")
    arrays, image = [x.numpy() for x in inputs], emulator.kernel_image(made.source)
    outputs = emulator.run(made, *arrays, image=image)
    for output, wanted in zip(outputs, model(*(x.double() for x in inputs)), strict=True):
        # The long sum adds 20,480 products of normal numbers, whose sum is near 100.
        np.testing.assert_allclose(output, wanted.numpy(), atol=2e-4 if wanted.ndim == 1 else 1e-5, rtol=1e-5)
    for output, reverse in zip(outputs, emulator.run(made, *arrays, image=image, order="reverse"), strict=True):
        np.testing.assert_array_equal(output, reverse)


def test_a_cuda_graph_gives_the_same_numbers(small):
    model, x = example()
    graph = build_cuda(small, arch="sm_80", cuda_graph=True)
    assert "cuda_graph" in graph.executable.as_text()
    (output,) = emulator.run(graph, x.numpy())
    np.testing.assert_allclose(output, float64(model, x), atol=1e-5, rtol=1e-5)


def test_a_symbolic_batch_stays_symbolic():
    model, x = example()
    dynamic = exported(model, x, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    three = torch.cat([x, x[:1]])
    (output,) = emulator.run(build_cuda(dynamic, arch="sm_80"), three.numpy())
    np.testing.assert_allclose(output, float64(model, three), atol=1e-5, rtol=1e-5)


def test_efficientnet_lite0_with_its_weights_on_the_emulated_device():
    graph = fix_batch(efficientnet.graph_of("unpruned"), 1)
    made = build_cuda(relax_module(graph.exported_program()), arch="sm_80")
    (output,) = emulator.run(made, efficientnet.IMAGE.numpy())
    with torch.no_grad():
        wanted = graph(efficientnet.IMAGE).numpy()
    # float32 logits of order 10 after 50 layers, summed in another order than PyTorch's.
    assert np.abs(output - wanted).max() <= 1e-4
    assert output.argmax() == wanted.argmax()
    # TVM's own rules give the depthwise convolutions eight threads a block.
    assert all(kernel.threads >= 32 and kernel.local_bytes == 0 for kernel in made.kernels)


def test_without_a_device_a_library_does_not_run(build, tmp_path, monkeypatch):
    # Device 99 stands for a machine without a GPU also where there is one.
    monkeypatch.setattr(cuda, "DEVICE", 99)
    with pytest.raises(UsageError, match="cuda: this machine has no CUDA device that TVM can use"):
        CudaLibrary(build.save(tmp_path / "model.so"))


@pytest.mark.parametrize("arch", ["sm80", "sm_", "sm_90a", "compute_80", "", "sm_8O"])
def test_a_name_that_is_no_architecture_is_refused(small, arch):
    with pytest.raises(UsageError, match=f"the architecture '{arch}' is unknown; expected a form like 'sm_80'"):
        build_cuda(small, arch=arch)


def test_a_model_without_kernels_is_refused():
    class Nothing(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(BuildError, match="the model has 0 modules of GPU kernels; expected one"):
        build_cuda(exported(Nothing(), torch.zeros(16)), arch="sm_80")


def test_an_op_that_tvm_does_not_know_is_named():
    class Largest(nn.Module):
        def forward(self, x):
            return x.amax(1)

    with pytest.raises(BuildError, match=r"TVM cannot import the model .*amax"):
        exported(Largest(), torch.zeros(4, 4))
