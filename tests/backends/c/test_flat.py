"""Reading the final Relax main: calls in order, constants once, aliases resolved, the rest refused."""

import numpy as np
import pytest
import tvm
from tvm import relax

from planish.backends.c.flat import Place, read_main
from planish.backends.target import Target
from planish.backends.tvm.build import relax_passes, tvm_target
from planish.ir.errors import BuildError


def flat_of(build, shape=(2, 3)) -> tvm.IRModule:
    """A module whose main is `build(builder, x)`, lowered."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(build(builder, x))
        builder.emit_func_output(result)
    with tvm_target(Target.get("x86-64-v3")):
        return relax_passes()(builder.get())


def test_calls_come_in_order_with_their_layers(lowered):
    main = read_main(lowered("x86-64-v3"), {"flip_rows": ["upside down"]})
    kernels = [call.kernel for call in main.calls]
    assert kernels.index("flip_rows") == 2 and kernels[-1] == "softmax"
    assert main.calls[2].layer == "upside down" and main.calls[-1].layer == "softmax"
    assert main.calls[0].arguments[0] == Place("input", 0)
    assert [spec.shape for spec in main.inputs] == [(1, 3, 12, 12)]
    assert [(spec.name, spec.shape) for spec, _ in main.outputs] == [("output0", (1, 5)), ("output1", (1, 5))]


def test_a_layer_list_that_is_too_short_falls_back_to_the_kernel():
    main = read_main(flat_of(lambda b, x: b.emit(relax.op.exp(x))), {"tir_exp": []})
    assert [call.layer for call in main.calls] == ["tir_exp"]


def test_equal_bytes_are_one_constant_whatever_their_shape():
    same = np.arange(6, dtype=np.float32)

    def build(b, x):
        y = b.emit(relax.op.add(x, relax.const(same.reshape(2, 3))))
        y = b.emit(relax.op.exp(y))
        y = b.emit(relax.op.multiply(b.emit(relax.op.reshape(y, (6,))), relax.const(same)))
        return b.emit(relax.op.subtract(y, relax.const(same + 1)))

    main = read_main(flat_of(build))
    assert len(main.constants) == 2
    np.testing.assert_array_equal(main.constants[0].ravel(), same)


def test_a_reshape_is_an_alias():
    def build(b, x):
        y = b.emit(relax.op.nn.softmax(x))
        return b.emit(relax.op.nn.softmax(b.emit(relax.op.reshape(y, (3, 2)))))

    main = read_main(flat_of(build))
    first, second = main.calls
    assert first.arguments[-1] == second.arguments[0] == Place("buffer", 0)


def test_inputs_and_constants_may_be_outputs():
    seven = np.full(3, 7, np.float32)
    main = read_main(flat_of(lambda b, x: relax.Tuple([x, relax.const(seven), x])))
    assert [place for _, place in main.outputs] == [Place("input", 0), Place("constant", 0), Place("input", 0)]


def test_a_symbolic_shape_is_refused():
    n = tvm.tirx.Var("n", "int64")
    with pytest.raises(BuildError, match="x: extent 'n' is not constant; a C program has static shapes"):
        read_main(flat_of(lambda b, x: b.emit(relax.op.exp(x)), shape=(n, 3)))


def test_a_call_of_the_runtime_is_refused():
    def build(b, x):
        return b.emit(relax.call_pure_packed("vm.builtin.copy", x, ty_args=x.ty))

    with pytest.raises(BuildError, match=r"'vm\.builtin\.copy' has no C form"):
        read_main(flat_of(build))
