"""Building: what is refused before any code is made."""

import pytest
from example_graphs import example_graph

import planish
from planish.ir.errors import UsageError


def test_quantizers_without_scales_are_refused():
    with pytest.raises(UsageError, match=r"quantizers without scales; add 'calibrate' to the recipe"):
        planish.compile(example_graph("resnet"), recipe="fold-batch-norm, insert-fake-quant")


def test_folding_after_quantizers_is_refused():
    with pytest.raises(UsageError, match=r"put 'fold-batch-norm' before 'insert-fake-quant'"):
        planish.Pipeline.parse("insert-fake-quant, fold-batch-norm").run(example_graph("resnet"))
