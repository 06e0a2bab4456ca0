"""Run kernels on buffers that lie between pages without access; a byte read or written outside kills this process.

First a child writes one byte outside, which must kill it.
"""

import ctypes
import mmap
import os
import signal
from math import prod

import numpy as np
import tvm
import tvm_ffi
from conftest import best_integer_machines, machines
from portable import PortableSdot, PortableSmull

from planish.backends.tvm.arithmetic import Arithmetic, with_stored_weights
from planish.backends.tvm.build import TIR_PIPELINE
from planish.backends.tvm.kernels import (
    Attention,
    BatchedMatmul,
    Binary,
    Dense,
    Depthwise,
    DirectConv,
    Epilogue,
    ExpandDepthwise,
    GlobalMean,
    IntegerWinograd,
    LayerNorm,
    Pointwise,
    Pool,
    Requantize,
    Softmax,
    Spec,
    ToIntegers,
    Tokens,
    ToPacked,
    ToPlain,
    TransposedConv,
    WeightOnlyDense,
    Window,
    Winograd,
    prim_func,
    signature,
)

SAME = Window((3, 3), padding=(1, 1, 1, 1))
ADDED = Epilogue("relu", residual="before")
SPECS: list[Spec] = [
    Pointwise(1, 7, 7, 19, 70, ADDED),
    Pointwise(3, 1, 1, 33, 17, ADDED),
    Dense(5, 33, 17, ADDED),
    Dense(1, 7, 3),
    DirectConv(1, 9, 11, 20, 40, Window((3, 3), (2, 2), (0, 1, 0, 1)), epilogue=ADDED),
    DirectConv(1, 13, 13, 3, 20, SAME, image=True),
    DirectConv(1, 6, 6, 12, 24, SAME, 4),
    DirectConv(1, 9, 9, 20, 40, Window((1, 1), (2, 2))),
    Depthwise(1, 9, 15, 20, SAME, ADDED),
    Depthwise(1, 10, 10, 20, Window((5, 5), (2, 2), (1, 2, 1, 2))),
    ExpandDepthwise(1, 9, 15, 19, 50, SAME),
    Winograd(1, 9, 11, 20, 40, (1, 1, 1, 1), 4, ADDED),
    Winograd(2, 8, 6, 17, 17, (0, 1, 2, 0), 2),
    Winograd(1, 9, 11, 20, 40, (1, 1, 1, 1), 4, ADDED, stride=2),
    Winograd(1, 17, 13, 3, 20, (3, 3, 3, 3), 3, ADDED, kernel=7, stride=2, image=True),
    Winograd(1, 7, 7, 32, 40, (1, 1, 1, 1), 4, ADDED, fresh=True),
    Winograd(1, 9, 11, 48, 20, (1, 1, 1, 1), 2, parts=(32, 16)),
    TransposedConv(1, 5, 7, 20, 24, (3, 3), (2, 2), (1, 1), (1, 1), (9, 13), ADDED),
    GlobalMean(2, 5, 7, 21),
    Pool(1, 9, 9, 21, Window((3, 3), (2, 2), (1, 1, 1, 1)), "max"),
    Binary(1, 3, 3, 21, "mul", True),
    ToPacked(1, 5, 3, 7),
    ToPlain(1, 5, 3, 7),
    Attention(1, Tokens(2, 5, 9), Tokens(1, 17, 9), Tokens(1, 17, 21), Tokens(2, 5, 21, True), 0.3, (1, 1, 5)),
    BatchedMatmul(1, Tokens(2, 5, 9), Tokens(2, 9, 21), Tokens(2, 5, 21)),
    BatchedMatmul(1, Tokens(2, 5, 9, True), Tokens(2, 33, 9), Tokens(2, 5, 33), transposed=True),
    LayerNorm(3, 21, 1e-5),
    Softmax(3, 21),
]
# Rows that end within a word of weights, groups that do, outputs that fill no vector.
INTEGERS = [WeightOnlyDense(1, 33, 17, 1), WeightOnlyDense(5, 33, 70, 3, ADDED)]
FLOATS = [WeightOnlyDense(1, 33, 17), WeightOnlyDense(5, 33, 70, epilogue=ADDED)]
PACKED = {"int4": INTEGERS, "int8": INTEGERS, "float16": FLOATS, "bfloat16": FLOATS}
# On the best integer arithmetics: tiles that repeat pixels, steps that repeat inputs, rings, borders.
REQUANTIZED = Requantize("after")
BYTES: list[Spec] = [
    Pointwise(1, 7, 7, 69, 70, REQUANTIZED),
    Dense(5, 132, 48, Requantize()),
    DirectConv(1, 9, 19, 20, 40, Window((3, 3), (2, 2), (0, 1, 0, 1)), epilogue=REQUANTIZED),
    DirectConv(1, 9, 9, 3, 20, Window((5, 3)), epilogue=Requantize()),
    DirectConv(1, 5, 9, 48, 20, SAME, epilogue=Requantize(), parts=(32, 16)),
    ExpandDepthwise(1, 9, 15, 19, 50, SAME, Requantize(), Requantize()),
    Depthwise(1, 9, 15, 20, SAME, REQUANTIZED),
    TransposedConv(1, 5, 7, 20, 40, (2, 2), (2, 2), (0, 0), (1, 1), (10, 14), Requantize()),
    ToIntegers(1, 3, 37, 3),
]
# With ARM's products of 16 bits: with padding and without, channels that fill no vector, phases of a stride.
WORDS: list[Spec] = [
    IntegerWinograd(1, 9, 7, 21, 40, (1, 1, 1, 1), REQUANTIZED),
    IntegerWinograd(1, 18, 22, 9, 7, (0, 0, 0, 0)),
    IntegerWinograd(1, 17, 16, 3, 12, (3, 3, 3, 3), REQUANTIZED, 7, 2),
]
# With ARM's products of rows: windows whose rows are zipped or woven, columns that are packed, residuals read as runs.
FIVE = Window((5, 5), (2, 2), (1, 2, 1, 2))
ROWS: list[Spec] = [
    Depthwise(1, 9, 15, 20, SAME, REQUANTIZED),
    Depthwise(1, 10, 10, 20, FIVE, Requantize(), True),
    Depthwise(2, 3, 2, 8, Window((3, 1), padding=(2, 2, 0, 0)), Requantize()),
]
DOTS: list[Spec] = [
    *ROWS,
    DirectConv(2, 17, 18, 3, 36, Window((7, 7), (2, 2), (3, 3, 3, 3)), epilogue=REQUANTIZED),
    DirectConv(1, 6, 5, 1, 40, Window((5, 4), (2, 1), (6, 6, 5, 5)), epilogue=Requantize()),
    DirectConv(1, 9, 11, 20, 40, Window((3, 3), (2, 2), (0, 1, 0, 1)), epilogue=REQUANTIZED),
    Pointwise(1, 7, 7, 69, 70, REQUANTIZED),
]
PAGE = mmap.PAGESIZE
ALIGNMENT = 64  # of every buffer that TVM or PyTorch hands to a kernel


def guarded(shape: tuple[int, ...], dtype: str, side: str) -> np.ndarray:
    """Zeros that touch a page without access: at their end (but for the alignment), or at their start."""
    size = np.dtype(dtype).itemsize * prod(shape)
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (0, pages + 1):
        if protect(ctypes.c_void_p(base + page * PAGE), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE if side == "start" else (pages + 1) * PAGE - -(-size // ALIGNMENT) * ALIGNMENT
    return np.frombuffer(memory, dtype, prod(shape), offset).reshape(shape)


def run(spec: Spec, arithmetic: Arithmetic, target: tvm.target.Target) -> None:
    function = prim_func(spec, arithmetic).with_attr("global_symbol", "kernel")
    kernel = tvm.compile(function, target, tir_pipeline=TIR_PIPELINE)["kernel"]
    for side in ("end", "start"):
        sizes = signature(spec, arithmetic).parameters()
        arrays = [guarded(tuple(s or 1 for s in shape), dtype, side) for shape, dtype in sizes]
        kernel(*map(tvm_ffi.from_dlpack, arrays))


def is_deadly_outside() -> bool:
    """Whether a child process that writes right behind a buffer dies of it."""
    child = os.fork()
    if not child:
        page = guarded((PAGE // 4,), "float32", "end")
        ctypes.c_float.from_address(page.ctypes.data + PAGE).value = 1.0
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV


def main() -> None:
    if not is_deadly_outside():
        raise SystemExit("a byte outside of a buffer can be written")
    for machine in machines().values():
        for spec in SPECS:
            run(spec, machine.arithmetic, machine.target())
        for kind, specs in PACKED.items():
            arithmetic = with_stored_weights(machine.arithmetic, kind)
            for spec in specs if arithmetic is not None else []:
                run(spec, arithmetic, machine.target())
    for machine in best_integer_machines():
        for spec in BYTES:
            run(spec, machine.arithmetic, machine.target())
    here = list(machines().values())[-1].target()
    for spec in WORDS + ROWS:
        run(spec, PortableSmull(4, 32), here)
    for spec in DOTS:
        run(spec, PortableSdot(4, 32), here)
    count = sum(map(len, (SPECS, BYTES, WORDS, ROWS, DOTS, *PACKED.values())))
    print(f"{count} kernels stayed inside")


if __name__ == "__main__":
    main()
