"""Kernels in TIR -> what LLVM code generation takes: TVM's passes, those that do nothing to our kernels left out."""

# TVM 0.27 annotates many functions more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

import tvm
from tvm import s_tir, tirx

# The attribute of kernels that are written in `kernels/`.
OWN_KERNEL = "planish.kernel"

# Improvements that find nothing in kernels whose loops are written out, whose indices are folded as they are written
# and whose registers have their least size: the machine code is the same, byte for byte, and lowering takes 40 % less.
_FOR_TVM_ONLY = frozenset(
    {
        "s_tir.CompactBufferAllocation",
        "s_tir.StmtSimplify",
        "s_tir.HoistIfThenElse",
        "s_tir.RenormalizeSplitPattern",
        "tirx.FP8ComputeLegalize",
        "tirx.FP8StorageLegalize",
    }
)


def lower_kernels(module: tvm.IRModule, convention: tvm.transform.Pass) -> tvm.IRModule:
    """Lower the PrimFuncs of a module, which are bound to a CPU target.

    convention  the pass that gives functions their calling convention
    """
    own = {var for var, function in module.functions.items() if function.attrs and OWN_KERNEL in function.attrs}
    lowered = {}
    for variables, left_out in ((own, _FOR_TVM_ONLY), (module.functions.keys() - own, frozenset())):
        if variables:
            passes = [step for step in _passes(convention) if step.info.name not in left_out]
            part = tvm.IRModule({var: module[var] for var in variables}, attrs=module.attrs)
            lowered |= {var.name_hint: (var, function) for var, function in _apply(passes, part).functions.items()}
    in_order = [lowered.pop(var.name_hint) for var in module.functions if var.name_hint in lowered]
    return tvm.IRModule(dict([*in_order, *lowered.values()]), attrs=module.attrs)


def _apply(passes: list[tvm.transform.Pass], module: tvm.IRModule) -> tvm.IRModule:
    return tvm.ir.transform.Sequential(passes)(module)


def _passes(convention: tvm.transform.Pass) -> list[tvm.transform.Pass]:
    """The CPU part of TVM's `s_tir` pipeline in its order, with its last steps for the host.

    Passes that do nothing without a GPU thread or an asynchronous copy are left out, and so is AnnotateEntryFunc: its
    entry symbol would be the same in every model that is linked into one program.
    """
    return [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.AnnotateIrregularLoop(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.FP8ComputeLegalize(),
        tirx.transform.VerifyMemory(),
        convention,
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
        tirx.transform.LowerTVMBuiltin(),
        tirx.transform.LowerIntrin(),
    ]
