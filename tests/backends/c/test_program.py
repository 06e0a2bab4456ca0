"""The whole C program: right numbers on x86 and ARM, the same bytes every time, libc only, threads without effect."""

import json
import os
import shutil
import subprocess
from dataclasses import asdict

import numpy as np
import pytest

from planish.backends.c import emit, link_library, link_runner
from planish.backends.c.program import pack
from planish.backends.emulator import emulator_command
from planish.backends.linker import find_linker
from planish.backends.target import Target
from planish.ir.errors import BuildError

NATIVE, BOARD = "x86-64-v3", "raspberry-pi-4"
STRICT = ["-Wall", "-Wextra", "-Werror"]
# float32 against PyTorch's float64: sums of at most 96 products of magnitude 1, one rounding of 6e-8 for each.
RTOL, ATOL = 1e-4, 1e-5


def compiler(target):
    return find_linker(Target.get(target).triple).command


def emulator(target):
    """The command line that runs a target's programs here."""
    return [] if target == NATIVE else emulator_command(asdict(Target.get(target)))[1]


def run(program, runner, net, folder, target, *options):
    """Run a runner on the network's input -> its outputs and its line of JSON."""
    net.inputs[0].tofile(folder / "x.bin")
    outputs = [folder / f"y{i}.bin" for i in range(2)]
    named = [word for path in outputs for word in ("--output", path)]
    command = [*emulator(target), runner, "--input", folder / "x.bin", *named, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    specs = program.outputs
    arrays = [np.fromfile(p, s.dtype).reshape(s.shape) for p, s in zip(outputs, specs, strict=True)]
    return arrays, json.loads(done.stdout)


def copied(program, folder):
    """The program in a folder of its own, where tests may build other things of it."""
    return shutil.copytree(program.directory, folder / "copy")


@pytest.mark.parametrize("target", [NATIVE, BOARD])
def test_outputs_are_those_of_pytorch(program, net, tmp_path, target):
    made = program(target)
    got, facts = run(made, made.directory / "runner", net, tmp_path, target, "--runs", "3")
    for g, wanted in zip(got, net.outputs, strict=True):
        np.testing.assert_allclose(g, wanted, rtol=RTOL, atol=ATOL)
    assert facts["return_code"] == 0 and facts["runs"] == 3
    assert 0 < facts["min_us"] <= facts["p50_us"] <= facts["p90_us"]


def test_zig_links_the_same_numbers(program, net, tmp_path):
    made = program(BOARD)
    folder = copied(made, tmp_path)
    want, _ = run(made, made.directory / "runner", net, tmp_path, BOARD)
    zig = find_linker("aarch64-linux-gnu", "zig")
    sources = ["runner.c", "model.c", "planish_runtime.c", "kernels.o"]
    options = ["-static", "-DMODEL_LOADED_WEIGHTS", "-DPROGRAM=model_program", *sources, "-lm", "-lpthread"]
    got, _ = run(made, zig.build(folder, "with_zig", options), net, folder, BOARD)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


def test_the_program_says_what_it_is(program):
    made = program(NATIVE)
    assert [c.layer for c in made.calls if c.kernel == "flip_rows"] == ["flip"]
    assert all(c.symbol == f"model_kernel_{c.kernel}" for c in made.calls)
    assert [str(s) for s in made.inputs] == ["x : float32[1,3,12,12]"]
    assert made.arena_lower_bound <= made.arena_bytes <= 3 * 8 * 12 * 12 * 4 + 64
    # flip_rows copies one plane of 12 x 12 floats.
    assert made.workspace_bytes >= 12 * 12 * 4
    # The four weights, each rounded up to 64 bytes.
    assert made.weight_bytes == (8 * 27 * 4 + 32) + (8 * 4 + 32) + 8 * 72 * 4 + 96 * 5 * 4
    assert "flip_rows" in made.assembly()
    assert set(made.members()) >= {"runner", "model.so", "weights.bin", "code/model.h", "code/kernels.o"}


@pytest.mark.parametrize("target", [NATIVE, BOARD])
def test_the_same_module_gives_the_same_bytes(program, lowered, tmp_path, target):
    first = program(target)
    again = emit(lowered(target), Target.get(target), tmp_path / "elsewhere", layers={"flip_rows": ["flip"]})
    link_runner(again)
    link_library(again)
    assert again.files == first.files
    for name in (*first.files, "runner"):
        assert (again.directory / name).read_bytes() == (first.directory / name).read_bytes(), name
    if target == NATIVE:
        assert (again.directory / "model.so").read_bytes() == (first.directory / "model.so").read_bytes()


def test_threads_change_no_byte(program, net, tmp_path):
    made = program(NATIVE)
    want, _ = run(made, made.directory / "runner", net, tmp_path, NATIVE)
    for threads in (2, 3, 8):
        options = ["--threads", str(threads), "--runs", "200"]
        got, facts = run(made, made.directory / "runner", net, tmp_path, NATIVE, *options)
        assert facts["threads"] == threads
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w)


USER = """
#include <stdio.h>
#include <string.h>
#include "model.h"
MODEL_ALIGNED static float in[3 * 12 * 12 + 1], out0[5], out1[5], again[5];
int main(int count, char **words) {
  FILE *file = fopen(words[1], "rb");
  if (count != 2 || fread(in, 4, 3 * 12 * 12, file) != 3 * 12 * 12) return 10;
  if (model_run(in, out0, out1) != MODEL_OK) return 11;
  if (model_run(in + 1, out0, out1) != MODEL_UNALIGNED) return 12;
  if (model_set_threads(0) != MODEL_THREADS || model_set_threads(MODEL_MAX_THREADS + 1) != MODEL_THREADS) return 13;
  for (int n = 1; n <= MODEL_MAX_THREADS; n = 2 * n + 1) {
    if (model_set_threads(n) != MODEL_OK || model_run(in, out0, again) != MODEL_OK) return 14;
    if (memcmp(again, out1, sizeof again)) return 15;
  }
  if (model_set_threads(1) != MODEL_OK) return 16;
  fwrite(out1, 4, 5, stdout);
  return 0;
}
"""


# Allocators that end the program.
NO_ALLOCATOR = """
#include <stdlib.h>
void *__wrap_malloc(size_t bytes) { (void)bytes; _Exit(40); }
void *__wrap_calloc(size_t count, size_t bytes) { (void)count; (void)bytes; _Exit(41); }
void *__wrap_realloc(void *old, size_t bytes) { (void)old; (void)bytes; _Exit(42); }
void *__wrap_aligned_alloc(size_t alignment, size_t bytes) { (void)alignment; (void)bytes; _Exit(43); }
int __wrap_posix_memalign(void **got, size_t alignment, size_t bytes) {
  (void)got; (void)alignment; (void)bytes; _Exit(44);
}
"""
ALLOCATORS = ("malloc", "calloc", "realloc", "aligned_alloc", "posix_memalign")


def user_program(folder, *options):
    """A user's own program with the weights linked in, compiled strictly."""
    (folder / "user.c").write_text(USER)
    sources = ["user.c", "model.c", "planish_runtime.c", "model_weights.S"]
    command = [*compiler(NATIVE), "-std=gnu11", "-O1", *STRICT, *sources]
    subprocess.run([*command, *options, "kernels.o", "-lm", "-lpthread", "-o", "user"], cwd=folder, check=True)
    return folder / "user"


def test_memory_is_static_and_as_large_as_stated(program, net, tmp_path):
    made = program(NATIVE)
    folder = copied(made, tmp_path)
    net.inputs[0].tofile(folder / "x.bin")
    (folder / "no_allocator.c").write_text(NO_ALLOCATOR)
    wraps = [f"-Wl,--wrap={name}" for name in ALLOCATORS]
    user = user_program(folder, "no_allocator.c", *wraps)
    done = subprocess.run([user, folder / "x.bin"], capture_output=True, timeout=60)
    assert done.returncode == 0, "it called an allocator"
    header = (folder / "model.h").read_text()
    assert f"ARENA_BYTES {made.arena_bytes}\n" in header
    assert f"static uint8_t arena[{made.arena_bytes}];" in (folder / "model.c").read_text()


@pytest.mark.parametrize("options", [[], ["-DMODEL_NO_THREADS"], ["-DMODEL_MAX_THREADS=2", "-O3"]])
def test_a_users_program_links_and_runs_it(program, net, tmp_path, options):
    folder = copied(program(NATIVE), tmp_path)
    net.inputs[0].tofile(folder / "x.bin")
    done = subprocess.run([user_program(folder, *options), folder / "x.bin"], capture_output=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32), net.outputs[1].ravel(), rtol=RTOL, atol=ATOL)


def test_without_threads_it_needs_little_of_libc(program, symbols_of, tmp_path):
    folder = copied(program(BOARD), tmp_path)
    sources = ["model.c", "planish_runtime.c", "model_weights.S"]
    options = ["-c", "-DMODEL_NO_THREADS", "-fno-stack-protector", "-O2", "-std=c11", *STRICT]
    for source in sources:
        subprocess.run([*compiler(BOARD), *options, source, "-o", f"{source}.o"], cwd=folder, check=True)
    found = [symbols_of(folder / name) for name in ("kernels.o", *(f"{source}.o" for source in sources))]
    missing = set().union(*(m for _, m in found)) - set().union(*(d for d, _ in found))
    assert missing <= {"memcpy", "memset", "expf"}  # expf: the softmax


def test_two_models_live_in_one_program(lowered, program, net, tmp_path):
    one = copied(program(NATIVE), tmp_path)
    emit(lowered(NATIVE), Target.get(NATIVE), tmp_path / "two", name="second")
    (one / "both.c").write_text(
        '#include <string.h>\n#include "model.h"\n#include "../two/second.h"\n'
        "MODEL_ALIGNED static float in[432], a[5], b[5], c[5], d[5];\n"
        "int main(void) { for (int i = 0; i < 432; ++i) in[i] = i % 7;\n"
        "  return model_run(in, a, b) || second_run(in, c, d) || memcmp(b, d, sizeof b) || b[0] == 0; }\n"
    )
    weights = [one / "model_weights.S", tmp_path / "two/second_weights.S"]
    for source in weights:
        subprocess.run([*compiler(NATIVE), "-c", source.name, "-o", source.stem + ".o"], cwd=source.parent, check=True)
    objects = [source.with_suffix(".o") for source in weights] + [one / "kernels.o", tmp_path / "two/kernels.o"]
    sources = ["both.c", "model.c", "../two/second.c", "planish_runtime.c"]
    command = [*compiler(NATIVE), *STRICT, *sources, *objects, "-lm", "-lpthread", "-o", "both"]
    subprocess.run(command, cwd=one, check=True)
    assert subprocess.run([one / "both"], timeout=60).returncode == 0


def test_nothing_is_left_of_a_program_that_cannot_be_built(lowered, tmp_path):
    with pytest.raises(BuildError, match="'my-model' is no C identifier"):
        emit(lowered(NATIVE), Target.get(NATIVE), tmp_path / "program", name="my-model")
    with pytest.raises(BuildError, match="cuda-sm80: a C program runs on a CPU"):
        emit(lowered(NATIVE), Target.get("cuda-sm80"), tmp_path / "program")
    assert os.listdir(tmp_path) == []


def test_constants_start_at_multiples_of_the_alignment():
    content, offsets = pack([np.arange(3, dtype=np.int8), np.ones(17, np.float32), np.ones(1, np.float16)])
    assert offsets == [0, 64, 192]
    assert content[:64] == bytes([0, 1, 2]) + bytes(61)
    np.testing.assert_array_equal(np.frombuffer(content[64 : 64 + 68], np.float32), 1)
    assert len(content) == 194
