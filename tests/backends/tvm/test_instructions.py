"""Reading instructions out of assembly text."""

import pytest

from planish.backends.tvm.instructions import by_symbol, multiply_accumulate


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("vfmadd231ps\t(%rax){1to16}, %zmm1, %zmm2", "vfmadd zmm"),
        ("vfmadd213ps\t%ymm0, %ymm1, %ymm2", "vfmadd ymm"),
        ("fmla\tv0.4s, v1.4s, v2.s[3]", "fmla v.4s"),
        ("fmla\tv0.8h, v1.8h, v2.h[7]", "fmla v.8h"),
        ("fmadd\ts0, s1, s2, s3", "fmadd scalar"),
        ("sdot\tv0.4s, v1.16b, v2.4b[0]", "sdot"),
        ("vfma.f32\tq0, q1, q2", "vfma.f32 q"),
        ("vmlal.s8\tq0, d2, d4", "vmlal.s8"),
        ("vmull.s16\tq0, d2, d4", "vmlal.s16"),
        ("vpdpbusd\t%zmm0, %zmm1, %zmm2", "vpdpbusd"),
        ("vmovaps\t%zmm0, (%rax)", "none"),
    ],
)
def test_an_instruction_is_named(line, name):
    assert multiply_accumulate(f"kernel:\n\t{line}\n\tret") == name


def test_a_kernel_owns_the_functions_derived_from_it_and_no_others():
    text = "dense_2:\n\tA\ndense_2_compute_:\n\tB\ndense_21:\n\tC\n.LBB0_1:\n\tD\nother:\n\tE\n"
    found = by_symbol(text, ["dense_2", "dense_21"])
    assert found["dense_2"].split() == ["A", "B"]
    assert found["dense_21"].split() == ["C", ".LBB0_1:", "D"]
