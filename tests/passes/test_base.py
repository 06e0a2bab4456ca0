from dataclasses import dataclass, field

import pytest
import torch
from torch import fx, nn

import planish
from planish.ir.errors import UsageError
from planish.passes.base import REGISTRY, Context, Fuel, Pass, Result, Skip, wrap
from planish.passes.pipeline import Pipeline


@pytest.fixture(autouse=True)
def _registry():
    """Passes that a test defines are gone after it."""
    known = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(known)


def graph_of(model, shape=(2, 4)):
    return planish.capture(model, torch.randn(*shape))


def test_a_subclass_with_a_name_is_registered():
    @dataclass(frozen=True)
    class Polish(Pass):
        name = "polish"
        strength: int = 1

    assert REGISTRY["polish"] is Polish
    assert str(Polish(strength=2)) == "polish{strength=2}"


def test_two_passes_cannot_share_a_name():
    class First(Pass):
        name = "twice"

    with pytest.raises(UsageError, match=r"two passes are named 'twice'; .*test_base has it already"):

        class Second(Pass):
            name = "twice"

    assert REGISTRY["twice"] is First


def test_a_name_that_a_pipeline_could_not_hold_is_refused():
    with pytest.raises(UsageError, match="Spaced is named 'two words'; expected letters"):

        class Spaced(Pass):
            name = "two words"


def test_an_unknown_need_is_refused():
    with pytest.raises(UsageError, match="greedy: it needs 'gold'; a pass can need data, evaluate, latency, target"):

        class Greedy(Pass):
            name = "greedy"
            needs = frozenset({"gold"})


def test_options_are_those_that_differ_from_their_defaults():
    @dataclass(frozen=True)
    class Tunable(Pass):
        name = "tunable"
        ratio: float = 0.5
        layers: tuple[str, ...] = field(default_factory=tuple)

    assert Tunable().options() == {}
    assert Tunable(0.7, ("a",)).options() == {"ratio": 0.7, "layers": ("a",)}


def test_a_pass_without_run_says_so():
    @dataclass(frozen=True)
    class Lazy(Pass):
        name = "lazy"

    with pytest.raises(UsageError, match="lazy: the pass has no 'run' method"):
        Lazy().run(graph_of(nn.ReLU()), Context())


def test_fuel_counts():
    fuel = Fuel(2)
    assert [fuel.take() for _ in range(4)] == [True, True, False, False]
    assert fuel.used == 2
    assert all(Fuel().take() for _ in range(3))


def test_a_skip_names_the_op_and_its_line():
    class Model(nn.Module):
        def forward(self, x):
            return torch.relu(x)

    skip = Skip.at(graph_of(Model()).node("relu"), "a reason")
    assert skip.where == f"'aten.relu.default' (test_base.py:{Model.forward.__code__.co_firstlineno + 1})"


def batches(data, model=None, args=None):
    graph = planish.capture(model or nn.Linear(4, 3), args or torch.randn(2, 4))
    return list(Context(data=data).batches(graph, "calibrate"))


def test_batches_of_every_form():
    x, labels = torch.randn(3, 4), torch.arange(3)
    for data in (x, [x], [(x,)], [(x, labels)], [[x, labels]]):
        ((found,),) = batches(data)
        assert found is x
    pair = (torch.randn(2, 4), torch.randn(2, 4))
    bilinear = nn.Bilinear(4, 4, 2)
    assert batches([(*pair, labels)], bilinear, pair) == [pair]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(5, 4), torch.arange(5)), 2)
    assert [len(inputs[0]) for inputs in batches(loader)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "calibrate: no data was given; pass data=loader"),
        ([], "calibrate: the loader is empty"),
        ([torch.randn(2, 4), torch.randn(2, 5)], r"calibrate, batch 2: input 'input_1' is f32\[2,5\]"),
        ([torch.randn(2, 4).double()], r"batch 1: input 'input_1' is f64\[2,4\]"),
        ([torch.full((1, 4), float("nan"))], "batch 1: input 'input_1' holds NaN or infinity"),
        ([torch.full((1, 4), float("inf"))], "holds NaN or infinity"),
        ([(torch.randn(2, 4),) * 3], "3 inputs were given; the model takes 1"),
        ([["text"]], "input 'input_1' is a str"),
    ],
)
def test_bad_data_is_refused(data, message):
    with pytest.raises(UsageError, match=message):
        batches(data)


def double_relu(module: fx.GraphModule):
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default):
        with module.graph.inserting_after(node):
            double = module.graph.call_function(torch.ops.aten.mul.Tensor, (node, 2.0))
        node.replace_all_uses_with(double, delete_user_cb=lambda user, double=double: user is not double)


def test_wrap_takes_a_function_that_works_in_place():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    entry = wrap(double_relu)
    outcome = Pipeline([entry]).run(graph_of(model))
    x = torch.randn(3, 4)
    torch.testing.assert_close(outcome.graph(x), 2 * model(x), rtol=0, atol=0)  # doubling is exact
    assert outcome.steps[0].result == Result(1)
    assert str(entry) == "<double_relu>"


def test_wrap_takes_a_function_that_makes_a_new_module():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()

    def retrace(module: fx.GraphModule) -> fx.GraphModule:
        return fx.Transformer(module).transform()

    graph = graph_of(model)
    outcome = Pipeline([wrap(retrace)]).run(graph)
    x = torch.randn(3, 4)
    torch.testing.assert_close(outcome.graph(x), model(x), rtol=0, atol=0)  # the same ops
    assert outcome.graph.train().module.training
    assert list(outcome.graph.weights) == list(graph.weights)


def test_wrap_keeps_nested_inputs_and_outputs():
    class Nested(nn.Module):
        def forward(self, pair):
            return {"sum": torch.relu(pair[0]) + pair[1]}

    pair = (torch.randn(2, 4), torch.randn(2, 4))
    graph = planish.capture(Nested(), (pair,))
    found = Pipeline([wrap(double_relu)]).run(graph).graph(pair)
    torch.testing.assert_close(found["sum"], 2 * torch.relu(pair[0]) + pair[1], rtol=0, atol=0)  # doubling is exact


def test_wrap_of_a_function_that_does_nothing_reports_no_change():
    assert Pipeline([wrap(lambda module: None)]).run(graph_of(nn.ReLU())).steps[0].result.changed == 0
