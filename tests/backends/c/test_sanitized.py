"""The C program of a bundle, built again with the address and undefined-behaviour sanitizers, makes no wrong access."""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import planish
from planish.backends.bundle import Bundle

needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or platform.machine() != "x86_64", reason="needs gcc on x86-64 with its sanitizers"
)
FLAGS = ("-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
DEFINITIONS = ("-DMODEL_LOADED_WEIGHTS", "-DPROGRAM=model_program")


class Branches(nn.Module):
    """Every way to use memory: residuals, concats, a workspace, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.expand, self.same = nn.Conv2d(32, 64, 1), nn.Conv2d(64, 64, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(64, 16, 2, 2), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.wide(x))
        x = torch.cat([x, self.deep(x)], 1)
        x = x + self.same(x)
        return self.up(x), self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The folder of a bundle, with `sanitized` beside its own runner."""
    room = tmp_path_factory.mktemp("sanitized")
    torch.manual_seed(0)
    made = planish.compile(Branches().eval(), (torch.randn(1, 3, 24, 20),), target="x86-64-v3", batch=1)
    folder = Bundle.open(made.save(room / "model.planish")).extract(room / "unpacked")
    code = folder / "code"
    sources = [*sorted(code.glob("*.c")), code / "kernels.o"]
    command = [
        "gcc",
        *FLAGS,
        *DEFINITIONS,
        f"-I{code}",
        *map(str, sources),
        "-o",
        str(folder / "sanitized"),
        "-lm",
        "-lpthread",
    ]
    done = subprocess.run(command, cwd=code, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def run(program: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # What the runner allocates lives as long as its process: that is no leak.
    surroundings = os.environ | {
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [str(program / "sanitized"), *options]
    return subprocess.run(command, cwd=program, env=surroundings, capture_output=True, text=True, timeout=120)


@needs_gcc
@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_self_test_is_clean(program, threads):
    done = run(program, "--self-test", "--threads", threads)
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
    assert done.returncode == 0
    assert json.loads(done.stdout)["self_test"] == "passed"


@needs_gcc
def test_many_runs_are_clean(program):
    inputs = ["--input", "golden/input0.bin", "--output", "first.bin", "--output", "second.bin"]
    done = run(program, *inputs, "--runs", "3", "--warmup", "1", "--threads", "2")
    assert done.returncode == 0 and not done.stderr, done.stderr


@needs_gcc
@pytest.mark.parametrize(
    "options", [["--input"], ["--input", "golden/output0.bin"], ["--self-test", "--threads", "99"]]
)
def test_wrong_calls_are_clean(program, options):
    done = run(program, *options)
    assert done.returncode == 2 and "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
