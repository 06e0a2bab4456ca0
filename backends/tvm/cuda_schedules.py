"""GPU schedules: TVM's default rules (dlight), one of ours where theirs is poor, and what may be fused before them."""

import math
from typing import Any

import tvm
from tvm.s_tir import Schedule, dlight
from tvm.s_tir.dlight.analysis import SBlockInfo, normalize_prim_func
from tvm.s_tir.dlight.base import try_inline
from tvm.s_tir.dlight.gpu.base import GPUScheduleRule
from tvm.s_tir.schedule import LoopRV

WARP = 32
THREADS_PER_BLOCK = 256

_INJECTIVE = 2


class ThreadPerOutput(GPUScheduleRule):
    """One thread for each output: elementwise kernels, and one reduction no longer than a warp with what follows it.

    Such reductions are depthwise convolutions and pooling windows. dlight splits a reduction between threads whatever
    its length: a 3 x 3 window gets 8 threads of a warp's 32, and they exchange 9 numbers. Its fallback keeps the window
    in one thread but runs what follows as a second kernel. 256 threads a block (not all 1024 that the device takes)
    leave a small feature map enough blocks for every multiprocessor.
    """

    def apply(self, func, target, _tunable):
        if not self.is_target_available(target):
            return None
        schedule = Schedule(func)
        blocks = normalize_prim_func(schedule)
        if blocks is None or not _is_short([block for block in blocks if block.is_reduction()]):
            return None
        main, *after = try_inline(schedule, blocks)
        if len(after) > 1 or (after and not main.is_reduction()) or not all(map(_has_outputs, (main, *after))):
            return None
        thread, steps = _bind(schedule, main)
        for epilogue in after:
            if _outputs(epilogue) == _outputs(main):
                schedule.reverse_compute_at(epilogue.block_rv, thread)
                schedule.set_scope(main.block_rv, 0, "local")
            else:
                # A larger epilogue has outputs that belong to no thread of the reduction.
                _bind(schedule, epilogue)
        if steps:
            schedule.decompose_reduction(main.block_rv, steps[0])
        return schedule


def _is_short(reductions: list[SBlockInfo]) -> bool:
    """Whether there is at most one reduction and a warp would not have a step of it for each of its threads."""
    if len(reductions) > 1:
        return False
    extents: list[Any] = [axis.dom for block in reductions for axis in block.iters if axis.kind == "R"]
    return all(isinstance(extent, int) for extent in extents) and math.prod(extents) <= WARP


def _has_outputs(block: SBlockInfo) -> bool:
    kinds = block.dom_kind()
    return "S" in kinds and set(kinds) <= {"S", "R"}


def _outputs(block: SBlockInfo) -> list[str]:
    """The extents of a block's outputs, as text so that symbolic ones compare too."""
    return [str(axis.dom) for axis in block.iters if axis.kind == "S"]


def _bind(schedule: Schedule, block: SBlockInfo) -> tuple[LoopRV, list[LoopRV]]:
    """Give each output of `block` a thread. Returns the thread's loop and the loops of the reduction inside it."""
    loops: list[tuple[Any, str]] = list(zip(schedule.get_loops(block.block_rv), block.dom_kind(), strict=True))
    outputs = [loop for loop, kind in loops if kind == "S"]
    steps = [loop for loop, kind in loops if kind == "R"]
    schedule.reorder(*outputs, *steps)
    index, thread = schedule.split(schedule.fuse(*outputs), factors=[None, THREADS_PER_BLOCK])
    schedule.bind(index, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    return thread, steps


class Guarded(GPUScheduleRule):
    """A rule of TVM's that declines where it would fail: a later rule then schedules the kernel.

    dlight's matrix rule asserts on an epilogue larger than the product, as where a squeeze-and-excite gate scales a
    map.
    """

    def __init__(self, rule: GPUScheduleRule):
        super().__init__()
        self.rule = rule

    def apply(self, func, target, tunable):
        try:
            return self.rule.apply(func, target, tunable)
        except (AssertionError, RuntimeError):
            return None


def schedule_rules() -> dlight.ApplyDefaultSchedule:
    """The pass that gives every kernel its threads: the first rule that fits a kernel schedules it."""
    gpu = dlight.gpu
    theirs = [Guarded(rule) for rule in (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction())]
    return dlight.ApplyDefaultSchedule(theirs[0], ThreadPerOutput(), *theirs[1:], gpu.Fallback())


@tvm.ir.transform.module_pass(opt_level=0, name="KeepGrowingKernelsApart")
def keep_growing_kernels_apart(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Stop TVM from fusing an op whose output is unlike all its inputs behind a convolution.

    TVM takes padding at the end of an axis for elementwise, because its indices are. Fused behind a convolution, that
    leaves the matrix rule without a tile and the border without a thread.
    """
    kernels: list[Any] = [pair for pair in module.functions_items() if isinstance(pair[1], tvm.tirx.PrimFunc)]
    for name, function in kernels:
        if function.attrs.get("op_pattern", _INJECTIVE) >= _INJECTIVE:
            continue
        *inputs, output = [str(p.ty.shape) for p in function.params if isinstance(p.ty, tvm.tirx.BufferType)]
        if output not in inputs:
            module[name] = function.with_attr("op_pattern", _INJECTIVE)
    return module
