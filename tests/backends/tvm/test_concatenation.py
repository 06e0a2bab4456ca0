"""Concatenations along channels: read where their parts lie, copied where somebody needs them as one map."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import planish
from planish.backends.tvm.build import compile_model, lower, storage_bytes
from planish.backends.tvm.relax import to_relax
from planish.ir.graph import Graph
from planish.ir.specialize import fix_batch

INT8 = "insert-fake-quant, calibrate, lower-integers"


class Skip(nn.Module):
    """A map of the way down beside one that comes up; `join` is how they go on."""

    def __init__(self, join: Callable[["Skip", torch.Tensor], object]):
        super().__init__()
        self.join = join
        self.down, self.deep = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.up, self.flat = nn.ConvTranspose2d(32, 48, 2, 2), nn.Conv2d(64, 20, 3, padding=1)
        self.point, self.apart = nn.Conv2d(64, 7, 1), nn.Conv2d(64, 64, 3, groups=64)

    def forward(self, x):
        kept = torch.relu(self.down(x))
        up = self.up(torch.relu(self.deep(F.max_pool2d(kept, 2))))
        return self.join(self, torch.cat([kept, up], 1))


def graph_of(join: Callable[[Skip, torch.Tensor], object], recipe: str = "") -> tuple[Graph, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Skip(join).eval()
    x = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    return planish.Pipeline.parse(recipe).run(planish.capture(model, (x,)), planish.Context(data=[x])).graph, x


@pytest.mark.parametrize("recipe", ["", INT8], ids=["float32", "int8"])
def test_nothing_is_copied_and_numbers_hold(recipe):
    """Two convolutions read the parts: 1x1, or on a matrix unit 3x3, one of them with a padding of its own before it.

    int8 is equal bit for bit. Tolerance of float32: as in test_relax.
    """
    target = planish.Target.get("local")
    if recipe and "amx_int8" in target.features:
        graph, x = graph_of(lambda m, both: (m.flat(F.pad(both, (0, 1, 1, 0))), torch.relu(m.flat(both))), recipe)
    else:
        graph, x = graph_of(lambda m, both: (m.point(both), torch.relu(m.point(both))), recipe)
    model = to_relax(graph, target)
    assert not any("concat" in layer.kernel for layer in model.layers)
    assert not model.others
    assert sum(getattr(spec, "parts", ()) == (16, 48) for spec, _ in model.specs.values()) == 2
    for got, wanted in zip(compile_model(model, target)(x), graph(x), strict=True):
        torch.testing.assert_close(got, wanted, **({"rtol": 0, "atol": 0} if recipe else {"rtol": 1e-5, "atol": 1e-5}))


@pytest.mark.parametrize(
    ("join", "copies"),
    [
        (lambda m, both: m.point(both) + m.point(both), 0),
        (lambda m, both: (m.point(both), F.max_pool2d(both, 2)), 1),
        (lambda m, both: (m.point(both), both), 1),
        (lambda m, both: m.apart(both), 1),
    ],
)
def test_copies(join, copies):
    """One for all readers, where any of them needs the whole."""
    graph, _ = graph_of(join)
    model = to_relax(fix_batch(graph, 1), planish.Target.get("raspberry-pi-4"))
    assert sum("concat" in layer.kernel for layer in model.layers) == copies
    whole = not any(getattr(spec, "parts", ()) for spec, _ in model.specs.values())
    assert whole is bool(copies)


def test_memory_holds_no_copy():
    """Less than the parts and a copy of them together, for one image of 12 x 20 pixels; where there is one, no less."""
    target, both = planish.Target.get("raspberry-pi-4"), 12 * 20 * (16 + 48) * 4

    def held(join: Callable[[Skip, torch.Tensor], object]) -> int:
        return storage_bytes(lower(to_relax(fix_batch(graph_of(join)[0], 1), target), target))

    assert held(lambda m, both: m.point(both)) < 2 * both <= held(lambda m, both: m.apart(both))
