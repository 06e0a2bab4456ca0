from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from example_graphs import made_once
from torch import nn

import planish
from planish.ir import rewrite
from planish.ir.errors import PassError, UsageError, VerifyError
from planish.passes import recipes
from planish.passes.base import REGISTRY, Context, Fuel, Pass, Result
from planish.passes.pipeline import Pipeline

aten = torch.ops.aten


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(self.fc(x))
        return torch.relu(x - 1)


LINE = Model.forward.__code__.co_firstlineno


@made_once
def captured() -> planish.Graph:
    return planish.capture(Model(), torch.randn(2, 4))


@pytest.fixture
def graph():
    return captured()


@pytest.fixture(autouse=True, scope="module")
def _registry():
    known = dict(REGISTRY)
    _define()
    yield
    REGISTRY.clear()
    REGISTRY.update(known)


class Passes:
    """The passes of this file, made inside a fixture, so that they are registered for its tests only."""


def _define():
    @dataclass(frozen=True)
    class ReluToTanh(Pass):
        name = "relu-to-tanh"
        provides = frozenset({"smooth"})

        def run(self, graph, ctx):
            changed = 0
            for node in graph.calls("relu"):
                if ctx.fuel.take():
                    rewrite.replace(graph, node, rewrite.insert(graph, aten.tanh.default, node.args, before=node))
                    changed += 1
            rewrite.finish(graph)
            return Result(changed)

    @dataclass(frozen=True)
    class NeedsSmooth(Pass):
        name = "needs-smooth"
        requires = frozenset({"smooth"})

        def run(self, graph, ctx):
            return Result(0)

    @dataclass(frozen=True)
    class Roughen(Pass):
        name = "roughen"
        drops = frozenset({"smooth"})

        def run(self, graph, ctx):
            return Result(0)

    @dataclass(frozen=True)
    class NeedsData(Pass):
        name = "needs-data"
        needs = frozenset({"data"})

        def run(self, graph, ctx):
            return Result(len(list(ctx.batches(graph, self.name))))

    @dataclass(frozen=True)
    class Breaks(Pass):
        name = "breaks"
        how: str = "type"

        def run(self, graph, ctx):
            relu = graph.calls("relu")[-1]
            if self.how == "type":
                relu.meta["val"] = relu.meta["val"].double()
            elif self.how == "crash":
                rewrite.set_weight(graph, "fc.bias", torch.full((4,), 9.0))
                raise ZeroDivisionError("of its own")
            elif self.how == "own error":
                raise PassError("breaks", "it cannot do this")
            elif self.how == "output":
                wide = rewrite.insert(graph, aten.to.dtype, (relu, torch.float64), after=relu)
                rewrite.replace(graph, relu, wide)
                rewrite.finish(graph)
            return Result(1)

    for cls in (ReluToTanh, NeedsSmooth, Roughen, NeedsData, Breaks):
        setattr(Passes, cls.__name__, cls)


def test_passes_run_in_order_on_a_copy(graph):
    before = str(graph)
    outcome = Pipeline.parse("relu-to-tanh, needs-smooth").run(graph)
    assert str(graph) == before
    assert [step.name for step in outcome.steps] == ["relu-to-tanh", "needs-smooth"]
    assert outcome.steps[0].result.changed == 2
    assert outcome.graph.properties == {"smooth"}
    assert outcome.before.macs == outcome.steps[1].cost.macs == 16
    x = torch.randn(3, 4)
    fc = graph.weight("fc.weight"), graph.weight("fc.bias")
    expected = torch.tanh(torch.tanh(nn.functional.linear(x, *fc)) - 1)
    torch.testing.assert_close(outcome.graph(x), expected, rtol=0, atol=0)  # the same ops


def test_an_empty_pipeline_gives_an_equal_copy(graph):
    outcome = Pipeline().run(graph)
    assert outcome.graph is not graph
    assert str(outcome.graph) == str(graph)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("needs-smooth", "needs-smooth: it needs 'smooth'; add 'relu-to-tanh' before it"),
        ("needs-smooth, relu-to-tanh", "needs-smooth: it needs 'smooth'; put 'relu-to-tanh' before it"),
        ("relu-to-tanh, roughen, needs-smooth", "needs-smooth: it needs 'smooth'"),
        ("needs-data", "needs-data: no data was given; pass data=loader"),
    ],
)
def test_order_and_needs_are_checked_before_anything_runs(graph, text, message):
    before = str(graph)
    with pytest.raises(UsageError, match=message):
        Pipeline.parse(f"breaks{{how=crash}}, {text}").run(graph)
    assert str(graph) == before


def test_a_property_that_the_graph_has_is_enough(graph):
    graph.properties.add("smooth")
    assert Pipeline.parse("needs-smooth").run(graph).graph.properties == {"smooth"}
    with pytest.raises(UsageError, match="it needs 'smooth'"):
        Pipeline.parse("roughen, needs-smooth").run(graph)


def test_a_pass_gets_the_data(graph):
    outcome = Pipeline.parse("needs-data").run(graph, Context(data=[torch.randn(2, 4)] * 3))
    assert outcome.steps[0].result.changed == 3


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (
            "type",
            VerifyError,
            rf"after breaks, 'aten.relu.default' \(test_pipeline.py:{LINE + 2}\): its type is recorded",
        ),
        ("crash", PassError, r"breaks\{how=crash\}: it failed: ZeroDivisionError: of its own"),
        ("own error", PassError, "breaks: it cannot do this"),
        ("output", PassError, r"inputs or outputs from x : .*, output : f32\[b,4\] to x : .*, output : f64\[b,4\]"),
    ],
)
def test_a_pass_that_fails_leaves_the_graph_as_it_was(graph, how, error, message):
    before, weight = str(graph), graph.weight("fc.bias").detach().clone()
    pipeline = Pipeline([Passes.Roughen(), Passes.Breaks(how)])
    with pytest.raises(error, match=message):
        pipeline.run(graph)
    assert str(graph) == before
    assert torch.equal(graph.weight("fc.bias"), weight)
    assert graph.properties == set()


def test_nan_in_a_weight_is_refused_before_anything_runs(graph):
    with torch.no_grad():
        graph.weight("fc.weight")[0, 0] = float("nan")
    with pytest.raises(UsageError, match=r"the model: weight 'fc\.weight' holds NaN"):
        Pipeline.parse("breaks{how=crash}").run(graph)


def test_fuel_bisects_to_the_first_wrong_rewrite(graph):
    """With n units of fuel exactly the first n rewrites happen, across passes."""
    x = 4 * torch.randn(5, 4)
    reference = graph(x)
    outputs = [Pipeline.parse("relu-to-tanh").run(graph, Context(fuel=Fuel(amount))).graph(x) for amount in range(4)]
    assert torch.equal(outputs[0], reference)
    assert not torch.equal(outputs[1], reference)
    assert not torch.equal(outputs[2], outputs[1])
    assert torch.equal(outputs[3], outputs[2])
    low, high = 0, 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if torch.equal(outputs[middle], reference) else (low, middle)
    assert high == 1


def test_progress_wraps_the_passes(graph):
    seen = []

    def progress(items, label):
        for item in items:
            seen.append((label, str(item)))
            yield item

    Pipeline.parse("relu-to-tanh, roughen").run(graph, Context(progress=progress))
    assert seen == [("passes", "relu-to-tanh"), ("passes", "roughen")]


def test_pipelines_are_values():
    pipeline = Pipeline.parse("relu-to-tanh, breaks{how=crash}")
    assert pipeline == Pipeline([Passes.ReluToTanh(), Passes.Breaks("crash")])
    assert hash(pipeline) == hash(Pipeline.parse(str(pipeline)))
    assert len(pipeline) == 2
    assert Pipeline.parse(pipeline) is pipeline
    assert Pipeline.parse(iter(pipeline)) == pipeline


def test_a_pipeline_from_a_file(tmp_path):
    pipeline = Pipeline.parse("relu-to-tanh, breaks{how=crash}")
    (tmp_path / "recipe.toml").write_text(pipeline.toml(), encoding="utf-8")
    assert Pipeline.parse(str(tmp_path / "recipe.toml")) == pipeline
    with pytest.raises(UsageError, match="there is no file"):
        Pipeline.parse(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("path", sorted(Path(recipes.__file__).parent.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_is_a_pipeline_in_a_right_order(path):
    pipeline = Pipeline.parse(str(path))
    pipeline.check()
    assert len(pipeline) >= 3
    assert Pipeline.parse(str(pipeline)) == pipeline
