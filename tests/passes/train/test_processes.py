"""Two real processes under torchrun: both end with one result, that of one process on the whole batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_cases import FINETUNE, batches, loader, mlp_graph, same, weights

import planish
from planish.passes.base import Context

HERE = Path(__file__).parent
TESTS = HERE.parents[1]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """run -> [weights of rank 0, weights of rank 1]"""
    folder = tmp_path_factory.mktemp("processes")
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(HERE / "processes_main.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    names = {path.name.removesuffix("-0.safetensors") for path in folder.glob("*-0.safetensors")}
    return {name: [load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1)] for name in names}


def alone(text, data):
    return weights(planish.Pipeline.parse(text).run(mlp_graph(), Context(data=data)).graph)


def test_both_processes_end_with_the_same_weights(ended):
    assert ended.keys() == {
        "list", "loader", "accumulated", "batch-norm", "learned-scales", "resumed", "whole",
    }  # fmt: skip
    for name, (first, second) in ended.items():
        assert same(first, second), name


@pytest.mark.parametrize("name", ["list", "loader", "accumulated"])
def test_two_processes_are_one_with_batches_of_both(ended, name):
    expected = alone(FINETUNE, {"list": batches(8), "loader": loader(8), "accumulated": batches(8)}[name])
    start = weights(mlp_graph())
    for weight, value in ended[name][0].items():
        # The mean of two means is the mean of all, but float32 adds in another order: 1e-7 per step, eight steps.
        torch.testing.assert_close(value, expected[weight], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(value, start[weight], atol=1e-4)


def test_an_interrupted_gradual_pruning_ends_the_same(ended):
    assert same(ended["resumed"][0], ended["whole"][0])
