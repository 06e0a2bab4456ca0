"""A small network as C programs and bundles: convs, a shortcut, a kernel with threads and workspaces, two outputs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch.nn import functional
from tvm import relax
from tvm.script import tirx as T

from planish.backends.bundle import Bundle, golden_members, write_bundle
from planish.backends.c import CProgram, emit, link_library, link_runner
from planish.backends.target import Target
from planish.backends.tvm.build import relax_passes, tvm_target

CHANNELS, SIZE, CLASSES = 8, 12, 5


@T.prim_func(s_tir=True)
def flip_rows(X: T.Buffer((1, CHANNELS, SIZE, SIZE)), Y: T.Buffer((1, CHANNELS, SIZE, SIZE))):
    """Y = X upside down, twice as large in value, through a copy: one workspace per thread."""
    T.func_attr({"tirx.noalias": True, "global_symbol": "flip_rows"})
    for c in T.parallel(CHANNELS):
        with T.sblock("plane"):
            copy = T.sblock_alloc_buffer((SIZE, SIZE))
            for h, w in T.grid(SIZE, SIZE):
                copy[h, w] = X[0, c, h, w] * T.float32(2)
            for h, w in T.grid(SIZE, SIZE):
                Y[0, c, h, w] = copy[SIZE - 1 - h, w]


@dataclass(frozen=True)
class Network:
    """weights and input in float32; outputs of PyTorch in float64."""

    weights: dict[str, np.ndarray]
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]

    def relax(self) -> tvm.IRModule:
        builder = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType((1, 3, SIZE, SIZE), "float32"))
        weight = {name: relax.const(array) for name, array in self.weights.items()}
        with builder.function("main", [x]):
            with builder.dataflow():
                y = builder.emit(relax.op.nn.conv2d(x, weight["conv1"], padding=1))
                y = builder.emit(relax.op.nn.relu(relax.op.add(y, weight["bias1"])))
                z = builder.emit(relax.op.nn.conv2d(y, weight["conv2"], padding=1))
                z = builder.emit(relax.op.add(z, y))
                flip = builder.add_func(flip_rows, "flip_rows")
                z = builder.emit(relax.call_tir(flip, [z], relax.TensorType((1, CHANNELS, SIZE, SIZE), "float32")))
                pooled = builder.emit(relax.op.reshape(relax.op.max(z, axis=3), (1, CHANNELS * SIZE)))
                logits = builder.emit(relax.op.matmul(pooled, weight["head"]))
                shares = builder.emit(relax.op.nn.softmax(logits))
                result = builder.emit_output(relax.Tuple([logits, shares]))
            builder.emit_func_output(result)
        return builder.get()


def network() -> Network:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / max(1, int(np.prod(shape[1:]))) ** 0.5

    w = {
        "conv1": normal(CHANNELS, 3, 3, 3),
        "bias1": normal(1, CHANNELS, 1, 1),
        "conv2": normal(CHANNELS, CHANNELS, 3, 3),
        "head": normal(CHANNELS * SIZE, CLASSES),
    }
    x = torch.randn(1, 3, SIZE, SIZE, generator=generator)
    d = {name: tensor.double() for name, tensor in w.items()}
    y = functional.relu(functional.conv2d(x.double(), d["conv1"], padding=1) + d["bias1"])
    z = functional.conv2d(y, d["conv2"], padding=1) + y
    logits = (2 * z.flip(2)).amax(3).reshape(1, -1) @ d["head"]
    outputs = [logits.numpy(), logits.softmax(1).numpy()]
    return Network({name: tensor.numpy() for name, tensor in w.items()}, [x.numpy()], outputs)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """torch.compile as in a new process: code of one class is compiled a few times only, whatever test asked for it."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def net() -> Network:
    return network()


@pytest.fixture(scope="session")
def lowered(net) -> Callable[[str], tvm.IRModule]:
    """The network as the flat module for a target's name."""

    @cache
    def lower(target: str) -> tvm.IRModule:
        with tvm_target(Target.get(target)):
            return relax_passes()(net.relax())

    return lower


@pytest.fixture(scope="session")
def program(lowered, tmp_path_factory) -> Callable[[str], CProgram]:
    """The network as a linked C program for a target's name."""

    @cache
    def build(target: str) -> CProgram:
        row = Target.get(target)
        made = emit(lowered(target), row, tmp_path_factory.mktemp(target) / "program", layers={"flip_rows": ["flip"]})
        link_runner(made)
        if row.machine == "x86_64":
            link_library(made)
        return made

    return build


@pytest.fixture(scope="session")
def bundle(net, program, tmp_path_factory) -> Callable[[str], Bundle]:
    """The network as a bundle for a target's name."""

    @cache
    def build(target: str) -> Bundle:
        made = program(target)
        fields = {"name": "small", "recipe": "fold-batch-norm", **made.manifest_fields()}
        golden = golden_members(net.inputs, [output.astype(np.float32) for output in net.outputs])
        path: Path = tmp_path_factory.mktemp("bundles") / f"{target}.planish"
        return Bundle.open(write_bundle(path, fields, made.members() | golden))

    return build
