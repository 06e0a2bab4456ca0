"""Kernels for several cores: the same bytes whatever the number of threads."""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm

from planish.backends.tvm.kernels import (
    Attention,
    BatchedMatmul,
    Binary,
    Dense,
    Depthwise,
    DirectConv,
    Epilogue,
    ExpandDepthwise,
    LayerNorm,
    Pointwise,
    Pool,
    Requantize,
    Tokens,
    Window,
    prim_func,
    signature,
)
from planish.backends.tvm.threads import set_threads

from .conftest import Runner, best_integer_machines, machines

SAME = Window((3, 3), padding=(1, 1, 1, 1))
RELU6 = Epilogue("relu6")
SPECS = {
    "pointwise": Pointwise(1, 28, 28, 40, 70, RELU6),
    "pointwise, batch at run time": Pointwise(None, 28, 28, 40, 70, RELU6),
    "dense": Dense(64, 128, 200),
    "direct": DirectConv(1, 28, 28, 20, 40, SAME, epilogue=RELU6),
    "depthwise": Depthwise(2, 56, 56, 40, SAME, RELU6),
    "expand, in bands of rows": ExpandDepthwise(1, 56, 56, 24, 70, Window((5, 5), (2, 2), (1, 2, 1, 2)), RELU6, RELU6),
    "pool": Pool(1, 56, 56, 40, SAME, "max"),
    "binary": Binary(1, 56, 56, 40, "add"),
    "attention, heads cut into blocks": Attention(1, *[Tokens(2, 700, 16)] * 4, scale=0.25),
    "batched product": BatchedMatmul(1, Tokens(2, 100, 64), Tokens(2, 64, 70), Tokens(2, 100, 70)),
    "layer norm": LayerNorm(300, 70, 1e-5),
}


@pytest.fixture
def threads() -> Iterator:
    """Sets the number of TVM's threads; afterwards it is one again."""
    yield set_threads
    set_threads(1)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_bytes_do_not_depend_on_threads(spec, threads):
    serial = Runner(list(machines().values())[-1])
    parallel = Runner(replace(serial.machine, arithmetic=replace(serial.arithmetic, cores=4)))
    generator = torch.Generator().manual_seed(3)
    shapes = signature(spec, serial.arithmetic)
    sized = [tuple(2 if s is None else s for s in shape) for shape in (*shapes.inputs, *shapes.weights)]
    arrays = [torch.randn(shape, generator=generator).numpy() for shape in sized]
    output = np.empty([2 if s is None else s for s in shapes.output], np.float32)

    def run(kernel: tvm.runtime.Executable) -> bytes:
        tensors = [tvm.runtime.tensor(array) for array in (*arrays, output)]
        kernel["kernel"](*tensors)
        return tensors[-1].numpy().tobytes()

    assert "T.parallel" in prim_func(spec, parallel.arithmetic).script()
    assert "T.parallel" not in prim_func(spec, serial.arithmetic).script()
    wanted, kernel = run(serial.compile(spec)), parallel.compile(spec)
    for count in (1, 2, max(3, os.cpu_count() or 1)):
        threads(count)
        assert run(kernel) == wanted


# Blocks of lines, shares of panels (more weights than input), bands of rows.
BYTES = {
    "pointwise": Pointwise(1, 28, 28, 40, 70, Requantize()),
    "direct": DirectConv(1, 29, 28, 20, 40, SAME, epilogue=Requantize()),
    "direct, many weights": DirectConv(None, 7, 7, 70, 200, SAME, epilogue=Requantize()),
    "expand": ExpandDepthwise(1, 56, 56, 24, 70, Window((5, 5), (2, 2), (1, 2, 1, 2)), Requantize(), Requantize()),
}


@pytest.mark.parametrize("spec", BYTES.values(), ids=BYTES)
def test_integers_do_not_depend_on_threads(spec, threads):
    integers = Runner(best_integer_machines()[-1])
    parallel = Runner(replace(integers.machine, arithmetic=replace(integers.arithmetic, cores=4)))
    generator = np.random.default_rng(3)
    shapes = signature(spec, integers.arithmetic).parameters()
    arrays = [
        generator.integers(0, 100, [2 if s is None else s for s in shape]).astype(dtype) for shape, dtype in shapes
    ]

    def run(kernel: tvm.runtime.Executable) -> bytes:
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        kernel["kernel"](*tensors)
        return tensors[-1].numpy().tobytes()

    assert "T.parallel" in prim_func(spec, parallel.arithmetic).script()
    wanted = run(integers.compile(spec))
    threads(3)
    assert run(parallel.compile(spec)) == wanted


def test_small_kernels_stay_on_one_thread():
    arithmetic = replace(machines(cores=4).popitem()[1].arithmetic, cores=4)
    assert "T.parallel" not in prim_func(Pointwise(1, 4, 4, 16, 16), arithmetic).script()
