"""Building: what is refused before any code is made."""

import pytest
import torch
from models import resnet

import planish
from planish.ir.errors import UsageError

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_quantizers_without_scales_are_refused():
    with pytest.raises(UsageError, match=r"quantizers without scales; add 'calibrate' to the recipe"):
        planish.compile(resnet(), X, recipe="fold-batch-norm, insert-fake-quant")


def test_folding_after_quantizers_is_refused():
    with pytest.raises(UsageError, match=r"put 'fold-batch-norm' before 'insert-fake-quant'"):
        planish.Pipeline.parse("insert-fake-quant, fold-batch-norm").run(planish.capture(resnet(), X))
