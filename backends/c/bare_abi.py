"""The plain C calling convention for kernels: `int kernel(T *a, T *b, ...)`, with nothing of TVM's runtime in it.

TVM's own last step (MakePackedAPI) wraps every kernel in checks and calls of its runtime library; it has no plain
form. This pass takes that step's place in the list of lowering passes (`compile.py`).
"""

from typing import Any

import tvm
from tvm import tirx

# What TVM's workspace lowering expects to find around a body: the CPU, and its only instance.
DEVICE_SCOPE = (("device_type", 1), ("device_id", 0))
# tvm::CallingConv::kCPackedFunc: the ABI is settled, so that no later pass changes the signature.
SETTLED = 1


def bare_abi(prefix: str, host: tvm.target.Target) -> tvm.transform.Pass:
    """A module pass: every PrimFunc of arrays becomes `int32 <prefix><name>(pointers)`, returning 0."""

    @tvm.transform.module_pass(opt_level=0, name="planish.BareABI")
    def run(module, _context):
        functions = {var: bare_function(function, prefix, host) for var, function in module.functions.items()}
        return tvm.IRModule(functions, attrs=module.attrs)

    return run  # type: ignore[return-value]


def bare_function(function: Any, prefix: str, host: tvm.target.Target) -> Any:
    """function and result: tirx.PrimFunc, whose attributes come from C++."""
    symbol = str(function.attrs["global_symbol"])
    pointers, views = [], []
    for parameter in function.params:
        element = tvm.ir.PrimType(str(parameter.dtype))
        pointers.append(tirx.Var(f"{parameter.name}_data", tvm.ir.PointerType(element)))
        views.append(tirx.DeclBuffer(parameter, data=pointers[-1]))
    body = function.body
    for key, value in DEVICE_SCOPE:
        body = tirx.AttrStmt("default", key, tirx.const(value, "int32"), body)
    body = tirx.SeqStmt([*views, body, tirx.Return(tirx.const(0, "int32"))])
    bare = tirx.PrimFunc(pointers, body, ret_type=tvm.ir.PrimType("int32"), attrs=function.attrs)
    # Buffers of one call never overlap: the memory plan keeps them apart, and without the promise LLVM stores
    # every accumulator on every step.
    attributes = {"calling_conv": SETTLED, "global_symbol": prefix + symbol, "target": host, "tirx.noalias": True}
    return bare.with_attr(attributes)
