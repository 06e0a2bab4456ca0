"""Calls that TVM's importer converts wrongly are refused, and their ordinary forms are not."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import planish
from planish.ir.errors import BuildError

CASES = {
    "add": lambda x: torch.add(x, x * 2, alpha=3),
    "sub": lambda x: torch.sub(x, x * 2, alpha=3),
    "rsub": lambda x: torch.rsub(x, x * 2, alpha=3),
    "avg_pool2d": lambda x: functional.avg_pool2d(x, 3, 2, 0, divisor_override=5),
    "instance_norm": lambda x: functional.instance_norm(x, eps=1e-2),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "scaled_dot_product_attention": lambda x: functional.scaled_dot_product_attention(x, x, x, scale=0.3),
    "upsample_nearest2d": lambda x: functional.interpolate(x, (5, 13)),
}
ORDINARY = {
    "add": lambda x: x + x * 2,
    "sub": lambda x: x - x * 2,
    "avg_pool2d": lambda x: functional.avg_pool2d(x, 3, 2, 1, False, False),
    "instance_norm": lambda x: functional.instance_norm(x),
    "scaled_dot_product_attention": lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    "upsample_nearest2d": lambda x: functional.interpolate(x, scale_factor=2),
}


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def compile_and_compare(function) -> planish.CompiledModel:
    x = torch.randn(2, 8, 9, 9)
    compiled = planish.compile(Function(function), (x,), recipe="")
    torch.testing.assert_close(compiled(x), function(x), rtol=1e-4, atol=1e-5)  # float32 sums in another order
    return compiled


@pytest.mark.parametrize("op", CASES)
def test_the_call_stays_in_pytorch_here_and_is_an_error_for_boards(op):
    compiled = compile_and_compare(CASES[op])
    assert any(f"aten.{op}." in name for name, _ in compiled.report.eager)
    with pytest.raises(BuildError) as caught:
        planish.compile(Function(CASES[op]), (torch.randn(2, 8, 9, 9),), recipe="", target="raspberry-pi-4")
    assert f"aten.{op}." in str(caught.value)


@pytest.mark.parametrize("op", ORDINARY)
def test_the_ordinary_form_is_compiled(op):
    assert not compile_and_compare(ORDINARY[op]).report.eager
