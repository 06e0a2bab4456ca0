"""Resuming is exact: after Ctrl-C, after kill -9, in the middle of an epoch; damaged and foreign files are named."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from train_cases import Interrupted, batches, conv_graph, examples, mlp_graph, same, weights

from planish.ir.errors import UsageError
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline

SHAPE = (3, 8, 8)
TESTS = Path(__file__).parents[2]


class Noisy(Dataset):
    """Every generator that an augmentation might use."""

    def __init__(self):
        self.inputs, self.labels = examples(SHAPE, count=24)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        noise = torch.randn(SHAPE) * random.random() + float(np.random.normal())
        return self.inputs[index] + noise, self.labels[index]


def run(text, graph, data, **context):
    """(weights, details)"""
    outcome = Pipeline.parse(text).run(graph, Context(data=data, **context))
    return weights(outcome.graph), outcome.steps[-1].result.details


@pytest.mark.parametrize(("optimizer", "after"), [("sgd", 0), ("sgd", 7), ("sgd", 15), ("adamw", 9)])
def test_after_an_interrupt_it_goes_on_to_the_same_weights(tmp_path, optimizer, after):
    """Dropout, batch norm, momentum, accumulation; six batches, three steps an epoch."""
    options = f"epochs=3, accumulate=2, optimizer={optimizer}, lr=0.01, checkpoint-every=2"
    data = batches(4, SHAPE, count=24)
    expected = run(f"finetune{{{options}}}", conv_graph(), data)
    text = f'finetune{{{options}, checkpoint="{tmp_path}"}}'
    with pytest.raises(KeyboardInterrupt):
        run(text, conv_graph(), Interrupted(data, after))
    resumed = run(text, conv_graph(), data)
    assert same(resumed[0], expected[0]) and resumed[1] == expected[1]
    again = run(text, conv_graph(), Interrupted(data, 0))  # it is complete: no batch is read
    assert same(again[0], expected[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffling_loader_with_random_augmentation_gives_the_same_batches_again(tmp_path, workers):
    stop = {"at": None, "step": 0}

    def loss(outputs, labels):
        stop["step"] += 1
        if stop["step"] == stop["at"]:
            raise KeyboardInterrupt
        return torch.nn.functional.cross_entropy(outputs, labels)

    def data():
        return DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers, drop_last=True)

    options = "epochs=2, checkpoint-every=1"
    expected, _ = run(f"finetune{{{options}}}", conv_graph(), data(), loss=loss)
    stop.update(at=9, step=0)
    text = f'finetune{{{options}, checkpoint="{tmp_path}"}}'
    with pytest.raises(KeyboardInterrupt):
        run(text, conv_graph(), data(), loss=loss)
    stop["at"] = None
    resumed, _ = run(text, conv_graph(), data(), loss=loss)
    assert same(resumed, expected)


def test_early_stopping_and_the_scale_of_fp16_go_on(tmp_path):
    data, options = batches(8), "epochs=6, early-stop=2, amp=fp16, lr=0.05"

    def metrics(graph):  # it falls from the third epoch on, whatever the weights: a function of what has been trained
        calls.append(graph)
        return -abs(len(calls) - 3)

    calls = []
    expected = run(f"finetune{{{options}}}", mlp_graph(), data, evaluate=metrics)
    calls = []
    text = f'finetune{{{options}, checkpoint="{tmp_path}"}}'
    with pytest.raises(KeyboardInterrupt):
        run(text, mlp_graph(), Interrupted(data, 14), evaluate=metrics)
    resumed = run(text, mlp_graph(), data, evaluate=metrics)
    assert same(resumed[0], expected[0]) and resumed[1] == expected[1] and expected[1]["stopped_early"]


PROGRAM = """
import sys, time
import torch
from train_cases import batches, conv_graph
import planish

torch.set_num_threads(1)
folder = sys.argv[1]

class Slow(list):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.2)
            yield batch

data = Slow(batches(4, (3, 8, 8), count=24))
text = f'finetune{{epochs=4, checkpoint-every=1, checkpoint="{folder}"}}'
planish.Pipeline.parse(text).run(conv_graph(), planish.Context(data=data))
"""


def test_a_process_that_is_killed_goes_on_where_it_was(tmp_path):
    """SIGKILL as soon as there is a third checkpoint, SIGINT at the eighth, then to the end in this process."""
    script, folder = tmp_path / "program.py", tmp_path / "state"
    script.write_text(PROGRAM)
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    for step, how in ((3, signal.SIGKILL), (8, signal.SIGINT)):
        command = [sys.executable, str(script), str(folder)]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        _wait_for(lambda step=step: (folder / f"step-{step:08d}").exists(), process)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        # An interrupted Python ends itself by the signal, unless what a package does at its exit runs a string of code.
        assert process.returncode == -how or (how == signal.SIGINT and process.returncode == 1)
        assert how == signal.SIGKILL or errors.rstrip().endswith("KeyboardInterrupt")
    data, options = batches(4, SHAPE, count=24), "epochs=4, checkpoint-every=1"
    resumed = run(f'finetune{{{options}, checkpoint="{folder}"}}', conv_graph(), Interrupted(data, 18))
    expected = run(f"finetune{{{options}}}", conv_graph(), data)
    assert same(resumed[0], expected[0]) and resumed[1] == expected[1]


def _wait_for(happened, process):
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_the_last_two_are_kept_and_nothing_else_lies_about(tmp_path):
    (tmp_path / ".step-00000001.left").mkdir()  # of a run that was killed while it wrote
    run(f'finetune{{epochs=2, checkpoint-every=1, checkpoint="{tmp_path}"}}', mlp_graph(), batches(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007", "step-00000008"]
    names = sorted(path.name for path in (tmp_path / "step-00000008").iterdir())
    assert names == ["optimizer.safetensors", "random.safetensors", "state.json", "weights.safetensors"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    run(f'finetune{{steps=2, checkpoint="{folder}"}}', mlp_graph(), batches(8))
    return folder / "step-00000002"


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "random.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path, written, damage, name):
    folder = tmp_path / "state" / written.name
    shutil.copytree(written, folder)
    damage(folder / name)
    with pytest.raises(UsageError) as caught:
        run(f'finetune{{steps=2, checkpoint="{folder.parent}"}}', mlp_graph(), batches(8))
    assert str(caught.value).startswith(f"{folder / name}: the checkpoint is damaged or incomplete; remove it")


def _edit(change):
    def apply(path):
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_truncate, "the checkpoint cannot be read"),
        (Path.unlink, "the checkpoint cannot be read"),
        (_edit(lambda state: state.update(format=0)), "it is no checkpoint of format 1"),
        (_edit(lambda state: state.pop("files")), "it is no checkpoint of format 1"),
    ],
)
def test_a_broken_state_is_named(tmp_path, written, change, message):
    folder = tmp_path / "state" / written.name
    shutil.copytree(written, folder)
    change(folder / "state.json")
    with pytest.raises(UsageError) as caught:
        run(f'finetune{{steps=2, checkpoint="{folder.parent}"}}', mlp_graph(), batches(8))
    assert str(caught.value).startswith(f"{folder / 'state.json'}: {message}")


def test_a_checkpoint_of_another_run_is_refused(written):
    with pytest.raises(UsageError, match=re.escape("is finetune{steps=2} and this run's finetune{steps=3}")):
        run(f'finetune{{steps=3, checkpoint="{written.parent}"}}', mlp_graph(), batches(8))
    other = mlp_graph()
    with torch.no_grad():
        other.weight("0.bias")[0] += 1
    with pytest.raises(UsageError, match="it is of another run: its model is"):
        run(f'finetune{{steps=2, checkpoint="{written.parent}"}}', other, batches(8))


def test_less_data_than_the_checkpoint_has_seen_is_an_error(tmp_path):
    text = f'finetune{{epochs=2, checkpoint-every=1, checkpoint="{tmp_path}"}}'
    with pytest.raises(KeyboardInterrupt):
        run(text, mlp_graph(), Interrupted(batches(8), 3))

    class Shorter:
        def __len__(self):
            return 4

        def __iter__(self):
            return iter(batches(8)[:1])

    with pytest.raises(UsageError, match="epoch 1: the loader gave 1 batches, the checkpoint has seen 3 of this epoch"):
        run(text, mlp_graph(), Shorter())
