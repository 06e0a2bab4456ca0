"""mix-precision: budgets met exactly, against every combination; times come from tables."""

import itertools
import json
import math
from functools import cache

import pytest
import torch
from torch import nn

from planish.ir.capture import capture
from planish.ir.cost import cost
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.accuracy.knapsack import Budget, choose
from planish.passes.quantize.accuracy.mix_precision import MixPrecision

LAYERS = ("stem", "middle", "wide", "head")


class Net(nn.Module):
    """Two convs and two linear layers; `middle` has columns of very unequal size, which few levels lose."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 6, 3)
        self.wide, self.head = nn.Linear(6, 32), nn.Linear(32, 4)
        with torch.no_grad():
            self.middle.weight[:, 0] *= 40
            self.stem.weight[0] /= 40

    def forward(self, x):
        y = torch.relu(self.middle(torch.relu(self.stem(x)))).mean((2, 3))
        return self.head(torch.relu(self.wide(y)))


@cache
def whole() -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(Net().eval(), (torch.randn(2, 3, 9, 9),))


def net() -> Graph:
    return whole().copy()


DATA = list(torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(2)).split(4))
LOWER = ", lower-integers, lower-weights"


@pytest.fixture(scope="module")
def calibrated() -> Graph:
    return Pipeline.parse("insert-fake-quant, calibrate").run(net(), Context(data=DATA)).graph


def run(text: str, graph: Graph, **options):
    outcome = Pipeline.parse(text).run(graph, Context(**{"data": DATA, **options}))
    return outcome.graph, next(step.result for step in outcome.steps if step.name.startswith("mix-precision"))


def chosen(result) -> dict[str, str]:
    return {row["layer"]: row["precision"] for row in result.details["layers"]}


def score(graph: Graph) -> float:
    """Minus the mean squared difference to the float model."""
    with torch.no_grad():
        return -float(torch.cat([(graph(x) - whole()(x)).double() for x in DATA]).square().mean())


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_best_of_all_combinations(seed):
    generator = torch.Generator().manual_seed(seed)
    losses, sizes, times = (torch.rand(6, 3, generator=generator).mul(1000).long().tolist() for _ in range(3))
    every = list(itertools.product(range(3), repeat=6))
    few, many = (sorted(Budget(rows, 1.0).spent(one) for one in every)[150] for rows in (sizes, times))
    budgets = [Budget(sizes, few), Budget(times, 2.0 * many)]
    allowed = [one for one in every if all(b.spent(one) <= b.most for b in budgets)]

    def loss(one):
        return sum(row[at] for row, at in zip(losses, one, strict=True))

    found = choose(losses, budgets)
    assert found is not None and all(b.spent(found) <= b.most for b in budgets)
    assert loss(found) == min(map(loss, allowed))
    tight = Budget(sizes, float(sum(map(min, sizes))))
    assert choose(losses, [tight]) == [row.index(min(row)) for row in sizes]  # a budget that fits exactly is met
    assert choose(losses, [Budget(sizes, tight.most - 1)]) is None


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5, 0.4])
def test_bytes_are_those_of_the_lowered_graph_and_within_the_budget(calibrated, share):
    lowered, result = run(f"mix-precision{{bytes={share}}}{LOWER}", calibrated)
    before, after = result.details["bytes"]
    assert before == cost(net()).bytes
    assert after == cost(lowered).bytes <= share * before
    json.dumps(result.details, allow_nan=False)
    packed = {"int8": ("_int8",), "int4": ("_int4",), "float": ("",)}
    for layer, precision in chosen(result).items():
        assert any(f"{layer}.weight{end}" in lowered.weights for end in packed[precision])
    if share == 1.0:
        assert set(chosen(result).values()) == {"float"} and result.details["loss"] == 0


def test_losses_are_those_that_quantize_sensitivity_measures(calibrated):
    _, result = run("mix-precision{bytes=0.5, precisions=[int8]}", calibrated)
    outcome = Pipeline.parse("quantize-sensitivity{bits=[8]}").run(calibrated, Context(data=DATA))
    measured = {row["layer"]: row["values"][0] for row in outcome.steps[0].result.details["layers"]}
    assert chosen(result) == dict.fromkeys(LAYERS, "int8") and result.changed == 0
    for row in result.details["layers"]:
        assert row["loss"] == measured[row["layer"]]


def table(times: dict[tuple[str, str], float]):
    """A latency function that knows each layer alone by its weight, and its precision by its quantizers."""
    asked = []

    def latency(graph: Graph) -> float:
        (name,) = {n.split(".")[0] for n in graph.weights if n.endswith(".weight")}
        weight, value = (graph.calls(f"fake_quantize_per_{what}_affine") for what in ("channel", "tensor"))
        precision = "int8" if value else "int4" if weight else "float"
        assert graph(*graph.example_inputs(batch=2))[0].shape[0] == 2  # it runs
        assert "calibrated" in graph.properties or precision == "float"
        asked.append((name, precision))
        return times[name, precision]

    return latency, asked


TIMES = {
    **{(name, "float"): 10.0 for name in LAYERS},
    **{(name, "int8"): 4.0 for name in LAYERS},
    **{(name, "int4"): 6.0 for name in LAYERS},
}


def test_a_layer_whose_integers_are_not_faster_goes_back_to_float(calibrated):
    latency, asked = table(TIMES | {("stem", "int8"): 10.0, ("middle", "int8"): 11.0, ("head", "int4"): 12.0})
    graph, result = run("mix-precision{latency=0.7}", calibrated, latency=latency)
    assert chosen(result) == {"stem": "float", "middle": "float", "wide": "int8", "head": "int8"}
    assert result.details["milliseconds"] == [40.0, 28.0]
    assert [skip.why for skip in result.skipped] == [
        "int8 takes 10 ms, float 10 ms; not faster",
        "int8 takes 11 ms, float 10 ms; not faster",
        "int4 takes 12 ms, float 10 ms; not faster",
    ]
    assert sorted(asked) == sorted({(n, p) for n in LAYERS for p in ("int8", "float")} | {
        ("wide", "int4"), ("head", "int4")})  # fmt: skip
    kept = [node.args[0].target for node in graph.calls("fake_quantize_per_channel_affine")]
    assert kept == ["wide.weight", "head.weight"]


def test_with_time_to_spare_nothing_loses_accuracy(calibrated):
    latency, _ = table(TIMES)
    _, result = run("mix-precision{latency=1.0}", calibrated, latency=latency)
    assert set(chosen(result).values()) == {"float"}
    _, result = run("mix-precision{latency=0.4}", calibrated, latency=latency)
    assert set(chosen(result).values()) == {"int8"} and result.changed == 0


def test_both_budgets_hold_together(calibrated):
    latency, _ = table(TIMES)
    lowered, result = run(f"mix-precision{{bytes=0.6, latency=0.8}}{LOWER}", calibrated, latency=latency)
    assert cost(lowered).bytes <= 0.6 * cost(net()).bytes
    assert result.details["milliseconds"][1] <= 0.8 * result.details["milliseconds"][0]


def test_the_smallest_model_within_a_drop(calibrated):
    everything = -score(Pipeline.parse("mix-precision{bytes=0.35}").run(calibrated, Context(data=DATA)).graph)
    sizes = []
    for drop in (0.0, everything / 50, everything / 3, 2 * everything):
        graph, result = run(f"mix-precision{{drop={drop:.17f}}}", calibrated, evaluate=score)
        assert score(graph) >= -drop
        sizes.append(result.details["bytes"][1])
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    assert sizes[0] == cost(net()).bytes


def test_budgets_that_cannot_be_met(calibrated):
    _, result = run("mix-precision{bytes=0.35}", calibrated)
    least = result.details["bytes"]
    with pytest.raises(
        UsageError, match=r"bytes 0\.1 is below the reachable minimum of 0\.\d+; raise 'bytes'"
    ) as error:
        run("mix-precision{bytes=0.1}", calibrated)
    named = float(str(error.value).split("minimum of ")[1].split(";")[0])
    assert named <= least[1] / least[0]
    run(f"mix-precision{{bytes={math.ceil(named * 1e4) / 1e4 + 1e-4}}}", calibrated)  # what it names can be had
    latency, _ = table(TIMES)
    with pytest.raises(UsageError, match=r"latency 0\.3 is below the reachable minimum of 0\.4"):
        run("mix-precision{latency=0.3}", calibrated, latency=latency)
    with pytest.raises(UsageError, match=r"'stem' takes 0 ms in"):
        run("mix-precision{latency=0.5}", calibrated, latency=lambda graph: 0.0)


def test_refusals(calibrated):
    for options, message in (
        ("", "no budget is given"),
        ("{drop=0.1, bytes=0.5}", "'drop' stands beside 'bytes'"),
        ("{bytes=1.5}", "'bytes' is 1.5; expected a share"),
        ("{drop=-1.0}", "'drop' is -1"),
        ("{bytes=0.5, precisions=[int3]}", "unknown precision 'int3'"),
    ):
        with pytest.raises(UsageError, match=message):
            Pipeline.parse(f"mix-precision{options}")
    with pytest.raises(UsageError, match="nothing measures latency; pass latency=function"):
        run("mix-precision{latency=0.5}", calibrated)
    with pytest.raises(UsageError, match="no evaluation function was given"):
        run("mix-precision{drop=0.5}", calibrated)
    text = "mix-precision{bytes=0.5, precisions=[int8, float]}"
    assert str(Pipeline.parse(text)) == text and Pipeline.parse(text).passes[0] == MixPrecision(
        bytes=0.5, precisions=("int8", "float")
    )


def test_layers_without_a_choice_stay_and_say_why(calibrated):
    text = "insert-fake-quant{only=[stem, middle]}, insert-fake-quant{only=[wide, head], activations=none}, calibrate"
    mixed = Pipeline.parse(text).run(net(), Context(data=DATA)).graph
    _, result = run("mix-precision{bytes=0.9}", mixed)
    assert [skip.why for skip in result.skipped] == ["its input is not quantized; it stays as it is"] * 2


def test_a_second_run_changes_nothing(calibrated):
    first, _ = run("mix-precision{bytes=0.5, precisions=[int8, float]}", calibrated)
    second, again = run("mix-precision{bytes=0.5, precisions=[int8, float]}", first)
    assert again.changed == 0 and second.text() == first.text()
