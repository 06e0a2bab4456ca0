"""As a user meets the pass: whole pipelines, wrong orders, bad graphs, other bit widths."""

import re

import pytest
import torch
from example_graphs import example_graph, made_once
from lower_cases import Net, lower_net, ops, random_data, settled
from torch import nn

from planish.backends.target import Target
from planish.ir import rewrite
from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.ops import arguments
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.lower.lower_integers import LowerIntegers

WHOLE = "fold-batch-norm, insert-fake-quant{activations=target}, calibrate, lower-integers"


@made_once
def chained() -> Graph:
    return capture(settled(lambda: Net(chain)), (random_data(2, 4, 8, 8),))


def run(text: str, model: nn.Module | Graph | None = None, **context):
    source = capture(model, (random_data(2, 4, 8, 8),)) if model else chained()
    return Pipeline.parse(text).run(source, Context(**{"data": random_data(4, 4, 8, 8), **context}))


def chain(m, x):
    return m.other(torch.relu(m.conv(x)))


@pytest.mark.parametrize(("board", "dtype"), [("x86-64-v3", torch.uint8), ("raspberry-pi-4", torch.int8)])
def test_the_target_decides_the_sign_of_activations(board, dtype):
    target = Target.get(board)
    outcome = Pipeline.parse(WHOLE).run(example_graph("resnet"), Context(data=random_data(4, 3, 16, 16), target=target))
    assert str(Pipeline.parse(WHOLE)) == WHOLE
    stored = outcome.graph.calls("requantize", "quantize", "add_int8")
    assert {node.meta["val"].dtype for node in stored} == {dtype}
    assert outcome.steps[-1].result.details["integer_macs"] == 1.0
    assert outcome.graph.properties >= {"integers"} and not outcome.graph.properties & {"fake-quant", "calibrated"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lower-integers", "lower-integers: it needs 'calibrated'; add 'calibrate' before it."),
        ("insert-fake-quant, lower-integers", "lower-integers: it needs 'calibrated'; add 'calibrate' before it."),
        (
            "insert-fake-quant, lower-integers, calibrate",
            "lower-integers: it needs 'calibrated'; put 'calibrate' before it.",
        ),
        (
            "insert-fake-quant, calibrate, lower-integers, lower-integers",
            "lower-integers: it needs 'calibrated'; add 'calibrate' before it.",
        ),
        (
            "insert-fake-quant, calibrate, lower-integers, calibrate",
            "calibrate: it needs 'fake-quant'; add 'insert-fake-quant' before it.",
        ),
        ("lower-integer", "pipeline: unknown pass 'lower-integer'; did you mean 'lower-integers'?"),
        (WHOLE, "insert-fake-quant: 'activations' is 'target' and no target was given; pass target=..."),
    ],
)
def test_wrong_orders(text, message):
    with pytest.raises(UsageError) as error:
        run(text)
    assert str(error.value).rstrip(".") == message.rstrip(".")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "calibrate: no data was given; pass data=loader"),
        ([], "calibrate: the loader is empty; give at least one batch"),
    ],
)
def test_data_that_is_missing_fails_before_anything_is_lowered(data, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        run("insert-fake-quant, calibrate, lower-integers", data=data)


def test_a_loader_shorter_than_asked_fails():
    with pytest.raises(UsageError, match="the loader has 4 samples, 'samples' asks for 100"):
        run("insert-fake-quant, calibrate{samples=100}, lower-integers")


def test_a_graph_without_quantizers_says_so():
    outcome = run("insert-fake-quant, calibrate, lower-integers", nn.Sequential(nn.Softmax(1), nn.MaxPool2d(2)))
    result = outcome.steps[-1].result
    assert result.changed == 0
    assert [(s.where, s.why) for s in result.skipped] == [
        ("the graph", "no activation is quantized; nothing computes in integers")
    ]
    assert ops(outcome.graph) == ops(outcome.origin)


def test_weights_alone_stay_in_float_with_the_reason():
    outcome = run("insert-fake-quant{activations=none}, calibrate, lower-integers")
    result = outcome.steps[-1].result
    assert result.changed == 0 and result.details["float_products"] == 2
    assert {skip.why for skip in result.skipped} == {"its input is not quantized; it stays in float"}
    assert len(result.skipped) == 2


@pytest.mark.parametrize("options", ["weight-bits=4", "activation-bits=5", "weight-bits=2, activation-bits=3"])
def test_fewer_bits_are_the_same_ops_on_a_smaller_range(options):
    outcome = run(f"insert-fake-quant{{{options}, activations=uint8}}, calibrate, lower-integers")
    result = outcome.steps[-1].result
    assert result.details["integer_macs"] == 1.0 and result.skipped == ()
    weight_bits = int((re.search(r"weight-bits=(\d)", options) or [0, 8])[1])
    bits = int((re.search(r"activation-bits=(\d)", options) or [0, 8])[1])
    for product in outcome.graph.calls("conv_int32"):
        assert int(outcome.graph.weight(arguments(product).weight).abs().max()) == 2 ** (weight_bits - 1) - 1
    (first, *_) = outcome.graph.calls("quantize")
    assert (arguments(first).low, arguments(first).high) == (0, 2**bits - 1)


def test_quantizers_of_16_bits_stay_fake():
    outcome = run("insert-fake-quant{activations=int16}, calibrate, lower-integers")
    why = {skip.why for skip in outcome.steps[-1].result.skipped}
    assert "its quantizer has levels -32768 to 32767, integer ops have 8 bits; it stays in float" in why
    assert outcome.steps[-1].result.changed == 0
    verify(outcome.graph)


def tampered(name: str, scale: float, function=chain):
    """Lowered with one scale set by hand, as a quantizer that was trained might have it."""
    lowered = lower_net(function)
    fake = lowered.fake.copy()
    rewrite.set_weight(fake, f"{name}.activation_scale", torch.tensor(scale))
    result = LowerIntegers().run(fake, Context())
    verify(fake)
    assert bool(torch.isfinite(fake(lowered.data)).all())
    return fake, result


def test_scales_whose_ratios_leave_float32_are_refused():
    graph, result = tampered("relu", 1e-42, lambda m, x: m.other(torch.relu(m.conv(1e6 * x))))
    first, second = result.skipped
    assert re.fullmatch(r"its scale \(1e-42\) is too small beside its input's \(\S+\); it stays in float", first.why)
    assert re.fullmatch(r"its sums can reach \S+, more than int32 holds; it stays in float", second.why)  # its bias can
    assert len(graph.calls("conv_int32")) == 1
    _, result = tampered("mul", 1e-44, lambda m, x: m.other(m.conv(x) * x))
    assert re.fullmatch(r"its inputs' scales .* are too far from its own; it stays in float", result.skipped[0].why)


def test_a_sum_on_a_far_finer_grid_than_its_inputs_is_refused():
    _, result = tampered("add", 1e-8, lambda m, x: m.other(m.conv(x) + x))
    assert re.fullmatch(r"its inputs' scales are \S+ times its own; it stays in float", result.skipped[0].why)


@pytest.mark.parametrize("op", ["add", "mul", "sigmoid", "mean"])
def test_an_op_that_is_kept_stays_in_float(op):
    def forward(m, x):
        y = m.conv(x)
        if op in ("add", "mul"):
            return m.other(getattr(torch, op)(y, m.other(y)))
        return m.other(torch.sigmoid(y) if op == "sigmoid" else y.mean((2, 3), keepdim=True) + y)

    text = "insert-fake-quant{{{}}}, calibrate, lower-integers"
    model = capture(settled(lambda: Net(forward)), (random_data(2, 4, 8, 8),))
    kept, whole = (run(text.format(options), model) for options in (f"keep=[{op}]", ""))
    form = {"add": "add_int8", "mul": "mul_int32", "sigmoid": "lookup_int8", "mean": "sum_int32"}[op]
    assert whole.graph.calls(form) and not whole.graph.calls(op)
    assert kept.graph.calls(op) and not kept.graph.calls(form)
    assert len(kept.graph.calls("conv_int32")) == len(whole.graph.calls("conv_int32"))
    named = [
        skip.where for skip in kept.steps[0].result.skipped if skip.why == f"'keep' lists '{op}'; it stays in float"
    ]
    assert len(named) == 1 and f"'aten.{op}" in named[0]
    # What the integer graph computes is what the fake-quantized one did, but for roundings.
    fake = run(f"insert-fake-quant{{keep=[{op}]}}, calibrate", model).graph
    data = random_data(4, 4, 8, 8)
    answers = [graph(data).detach() for graph in (fake, kept.graph)]
    assert float((answers[0] - answers[1]).square().sum()) < 1e-3 * float(answers[0].square().sum())  # 30 dB


def test_a_product_without_an_integer_form_has_its_float_weight_back():
    class Even(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.even = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 2, padding="same")

        def forward(self, x):
            return self.even(torch.relu(self.conv(x)))

    source = capture(settled(Even), (random_data(2, 4, 8, 8),))
    outcome = Pipeline.parse("insert-fake-quant, calibrate, lower-integers").run(
        source, Context(data=random_data(4, 4, 8, 8))
    )
    (left,) = outcome.graph.calls("conv2d")
    assert [skip.why for skip in outcome.steps[-1].result.skipped] == [
        "its padding 'same' is uneven; it stays in float"
    ]
    assert arguments(left).weight.target == "even.weight"
    assert torch.equal(outcome.graph.weights["even.weight"], source.weights["even.weight"])
    assert (
        not outcome.graph.calls("fake_quantize_per_channel_affine") and "even.weight_scale" not in outcome.graph.weights
    )


def test_weights_alone_stay_rounded_for_lower_weights():
    text = (
        "insert-fake-quant{only=[conv]}, insert-fake-quant{only=[other], activations=none}, calibrate, lower-integers"
    )
    outcome = run(text)
    assert len(outcome.graph.calls("fake_quantize_per_channel_affine")) == 1
