"""TVM binds threads to cores: the caller's stays on those that it may use, and `local` counts them."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import planish
from planish.backends.target import local
from planish.backends.tvm.build import compile_model
from planish.backends.tvm.relax import to_relax
from planish.backends.tvm.threads import set_threads
from planish.ir.specialize import fix_batch

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores to choose from"
)


def _conv_on_two_cores() -> Callable[[], object]:
    """A call whose kernel is large enough to be shared out, so that it starts a pool."""
    x = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    target = replace(planish.Target.get("local"), cores=2)
    graph = fix_batch(planish.capture(nn.Conv2d(16, 32, 3).eval(), (x,)), 1)
    compiled = compile_model(to_relax(graph, target), target)
    return lambda: compiled(x)


def _set_one() -> Callable[[], object]:
    return lambda: set_threads(1)


@pytest.mark.parametrize("make", [_set_one, _conv_on_two_cores])
def test_a_caller_keeps_its_cores(make):
    """The last core alone, of which TVM itself makes the first ones. A new thread has no pool yet."""
    use, found = make(), []

    def run() -> None:
        os.sched_setaffinity(0, {last})
        use()
        found.append((os.sched_getaffinity(0), local.__wrapped__().cores))

    last = max(os.sched_getaffinity(0))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [({last}, 1)]
