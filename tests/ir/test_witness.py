"""The witness of a model: the same for models that capture makes the same of, another for all others."""

from functools import partial

import models
import pytest
import torch
from torch import nn
from torch.nn import functional

import planish
from planish.ir.shadow import Types
from planish.ir.witness import outline, witness

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Its attributes decide what it does, so that one class stands for many models."""

    def __init__(self, **attributes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.function, self.times, self.tensor, self.options = torch.relu, 2, None, {"slope": 0.1}
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x, *more):
        y = self.function(self.conv(x))
        for _ in range(self.times):
            y = functional.leaky_relu(y, self.options["slope"])
        return y if self.tensor is None else y + self.tensor


def of(model: nn.Module, *args: torch.Tensor, types: Types | None = None) -> str | None:
    return witness(model, args or (X,), types)


@pytest.mark.parametrize("name", models.EXAMPLES)
def test_equal_models_have_one_witness_with_and_without_known_types(name):
    make, shape = models.EXAMPLES[name]
    x, types = torch.randn(2, *shape), Types()
    first = of(make(), x, types=types)
    known = Types(dict(types.known))
    assert first is not None and first == of(make(), x) == of(make(), x, types=known)
    assert types.found_new and not known.found_new
    assert first == of(make(seed=1), x + 1)  # values of weights and inputs are not in it
    assert first != of(make(), x[:1]) and outline(make(), (x,)) == outline(make(seed=1), (x,))


def _hidden_constant(x):
    return x + torch.tensor([1.0, 2.0])[1]


VARIANTS = {
    "as it was": Net,
    "another function": partial(Net, function=torch.sigmoid),
    "relu6": partial(Net, function=functional.relu6),
    "the op below relu6": partial(Net, function=partial(functional.hardtanh, min_val=0.0, max_val=6.0)),
    "a number": partial(Net, times=3),
    "a number in a dict": partial(Net, options={"slope": 0.2}),
    "a constant": partial(Net, tensor=torch.ones(1)),
    "its value": partial(Net, tensor=torch.full((1,), 2.0)),
    "its type": partial(Net, tensor=torch.ones(1, dtype=torch.float64)),
    "made in forward": partial(Net, function=_hidden_constant),
    "a buffer": partial(Net, running=nn.Buffer(torch.ones(1))),
    "not in checkpoints": partial(Net, running=nn.Buffer(torch.ones(1), persistent=False)),
    "a parameter": partial(Net, running=nn.Parameter(torch.ones(1))),
    "frozen": partial(Net, running=nn.Parameter(torch.ones(1), requires_grad=False)),
    "another name": partial(Net, walking=nn.Parameter(torch.ones(1))),
    "an autocast": partial(Net, function=torch.autocast("cpu", torch.bfloat16)(torch.relu)),
    "without gradients": partial(Net, function=torch.no_grad()(torch.relu)),
}


def test_what_capture_sees_is_in_the_witness():
    found = {name: of(make().eval()) for name, make in VARIANTS.items()}
    assert None not in found.values()
    by_witness: dict = {}
    for name, value in found.items():
        by_witness.setdefault(value, []).append(name)
    assert [names for names in by_witness.values() if len(names) > 1] == []


def test_what_is_asked_of_the_compiler_is_answered_as_in_capture():
    class Asks(nn.Module):
        def forward(self, x):
            return x * self.factor if torch.compiler.is_exporting() else x

    one, two = Asks(), Asks()
    one.factor, two.factor = 2, 3
    assert of(one) != of(two) and not torch.compiler.is_exporting()


def test_modes_are_in_the_witness():
    first = of(Net())
    with torch.no_grad():
        assert of(Net()) != first
    torch.set_default_dtype(torch.float64)
    try:
        assert of(Net().float()) != first
    finally:
        torch.set_default_dtype(torch.float32)
    assert of(Net().train()) == first  # capture is in eval form


def test_ties_and_nesting_are_in_the_witness():
    class Two(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight if tied else self.b.weight
            self.wrap = list

        def forward(self, pair):
            return self.wrap((self.a(pair[0]), self.b(pair[1])))

    tuples, other = Two(True), Two(True)
    other.wrap = tuple
    found = [witness(model, args) for model in (Two(True), Two(False), other) for args in (((X, X),), ([X, X],))]
    assert len({*found, None}) == 7 and witness(tuples, ((X, X),)) == found[0]


def test_generated_code_is_known_by_what_it_does():
    traced = [torch.fx.symbolic_trace(Net(function=f)) for f in (torch.relu, torch.relu, torch.tanh)]
    first, second, other = (of(module) for module in traced)
    assert first == second != other and first is not None


@torch.library.custom_op("planish_tests::twice", mutates_args=())
def _twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


_twice.register_fake(torch.empty_like)


class _Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class _Fixed(nn.Module):
    def forward(self, x):
        return x.view(2, 3, 8, 8)


def _hooked():
    model = Net()
    model.conv.register_forward_hook(lambda module, args, output: output * 2)
    return model


WITHOUT = {
    "data decide": _Branches,
    "one batch only": _Fixed,
    "hooks": _hooked,
    "scripted": lambda: torch.jit.script(nn.Linear(8, 8)),
    "compiled": lambda: torch.compile(Net()),
    "sparse": lambda: Net(tensor=torch.eye(6).to_sparse()),
    "no tensor comes of it": lambda: Net(function=print),
    "op of another library": lambda: Net(function=_twice),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of scripting
@pytest.mark.parametrize("make", WITHOUT.values(), ids=list(WITHOUT))
def test_models_without_a_witness_have_none(make):
    assert of(make()) is None


def test_the_model_and_the_random_state_stay_as_they_are():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.seen, self.cache = [], {}

        def forward(self, x):
            self.count += 1
            self.seen.append(x.shape)
            self.last = x
            return self.cache.setdefault(x.shape, x * 2)

    model, random = Remembers().train(), Net(function=torch.rand_like)
    state = torch.get_rng_state()
    assert of(random) is not None
    of(model)
    assert (
        model.training and not model.seen and not model.cache and not hasattr(model, "last") and not model.count.any()
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_witnesses_are_captured_the_same():
    """Every pair of variants that differ in their graph differ in their witness: capture itself is the judge."""
    graphs = {name: planish.capture(make().eval(), X) for name, make in list(VARIANTS.items())[:7]}
    texts = {name: graph.text() for name, graph in graphs.items()}
    assert texts["relu6"] != texts["the op below relu6"] and len(set(texts.values())) >= 6
