"""lower-weights: what is stored, in how many bytes, and what the pass leaves as it was."""

import pytest
import torch
from example_graphs import made_once
from lower_cases import random_data, settled
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.ops import arguments
from planish.ir.verify import verify
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline


class Layers(nn.Module):
    """A conv, and linear layers with an odd number of inputs, without a bias, and with tied weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)
        self.odd = nn.Linear(7, 12)
        self.twice = nn.Linear(12, 12, bias=False)

    def forward(self, x):
        y = torch.relu(self.odd(torch.relu(self.conv(x)).mean((2, 3))))
        return self.twice(torch.relu(self.twice(y)))


X = random_data(2, 3, 6, 6)


@made_once
def layers() -> Graph:
    return capture(settled(Layers), (X,))


def run(text: str, model: nn.Module | None = None, x: torch.Tensor = X, **context):
    return Pipeline.parse(text).run(capture(model, (x,)) if model else layers(), Context(**context))


def fake_and_packed(options: str, calibrate: str = "calibrate{data=none}, ") -> tuple[Graph, Graph, dict]:
    before = run(f"insert-fake-quant{{activations=none, keep=[conv], {options}}}, {calibrate}".rstrip(", "))
    after = Pipeline.parse("lower-weights").run(before.graph)
    verify(after.graph)
    (step,) = after.steps
    assert (step.result.changed, step.result.skipped) == (3, ())
    return before.graph, after.graph, step.result.details


# Of the 12 x 7 and the 12 x 12 weight: bytes of what is stored, scales, dtype.
KINDS = {
    "weight-bits=8": ((84, 144), (12, 12), torch.int8),
    "weight-bits=5": ((84, 144), (12, 12), torch.int8),
    "weight-bits=4": ((48, 72), (12, 12), torch.uint8),
    "weight-bits=2": ((48, 72), (12, 12), torch.uint8),
    "weight-bits=4, weight-group=6": ((48, 72), (12, 24), torch.uint8),  # 6 does not divide 7: a scale per output
    "weights=float16": ((168, 288), (0, 0), torch.float16),
    "weights=bfloat16": ((168, 288), (0, 0), torch.bfloat16),
}


@pytest.mark.parametrize("options", KINDS)
def test_same_numbers_in_fewer_bytes(options):
    (odd, twice), scales, dtype = KINDS[options]
    fake, packed, details = fake_and_packed(options)
    x = random_data(5, 3, 6, 6, seed=3)
    # The op dequantizes to the very weights that the quantizers make.
    assert torch.equal(packed(x), fake(x))
    calls = [arguments(node) for node in packed.calls("linear_weight_only")]
    weights = [packed.weight(call.weight) for call in calls]
    assert [w.nbytes for w in weights] == [odd, twice, twice] and {w.dtype for w in weights} == {dtype}
    found = [0 if call.scale is None else packed.weight(call.scale).numel() for call in calls]
    assert found == [scales[0], scales[1], scales[1]]
    assert weights[1] is weights[2]  # tied before, tied after
    conv_and_bias = 4 * (7 * 27 + 7 + 12)
    assert details["weight_bytes"][1] == odd + twice + 4 * sum(scales) + conv_and_bias
    assert details["packed_layers"] == 3


def test_floats_need_no_calibration():
    fake, packed, _ = fake_and_packed("weights=float16", calibrate="")
    assert torch.equal(packed(X), fake(X))


def test_a_second_run_changes_nothing():
    _, packed, _ = fake_and_packed("weight-bits=4")
    again = Pipeline.parse("lower-weights").run(packed)
    assert again.graph.text() == packed.text()
    assert [(s.where, s.why) for s in again.steps[0].result.skipped] == [("the graph", "no weight is rounded")]


def test_only_linear_layers():
    outcome = run("insert-fake-quant{activations=none}, calibrate{data=none}, lower-weights")
    (skip,) = outcome.steps[-1].result.skipped
    assert "conv2d" in skip.where
    assert skip.why == "only linear layers compute with packed weights; its weights stay rounded floats"
    assert len(outcome.graph.calls("linear_weight_only")) == 3


def test_weights_whose_inputs_are_quantized_are_left_to_lower_integers():
    mixed = "insert-fake-quant{only=[odd], activations=none, weight-bits=4}, insert-fake-quant{keep=[odd]}, calibrate"
    for order in ("lower-weights, lower-integers", "lower-integers, lower-weights"):
        outcome = run(f"{mixed}, {order}", data=[X])
        assert len(outcome.graph.calls("linear_weight_only")) == 1
        assert len(outcome.graph.calls("linear_int32")) == 2 and len(outcome.graph.calls("conv_int32")) == 1
    before = run(f"{mixed}, lower-weights", data=[X])
    reasons = [s.why for s in before.steps[-1].result.skipped if "linear" in s.where]
    assert reasons == ["its input is quantized too; its weights stay rounded floats"] * 2


def test_a_graph_without_rounded_weights():
    outcome = run("lower-weights")
    assert outcome.steps[0].result.changed == 0 and "integers" not in outcome.graph.properties
    assert [s.why for s in outcome.steps[0].result.skipped] == ["no weight is rounded"]


def test_zero_points_are_declined():
    fake = run("insert-fake-quant{activations=none, only=[odd]}, calibrate{data=none}").graph
    fake.weights["odd.weight_zero_point"].fill_(1)
    (step,) = Pipeline.parse("lower-weights").run(fake).steps
    assert [s.why for s in step.result.skipped] == ["its weight has zero points; its weights stay rounded floats"]


def test_a_computed_bias_or_weight_is_declined():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x, which):
            small = self.layer.weight.to(torch.float16).to(torch.float32)
            other = (self.layer.weight * which).to(torch.float16).to(torch.float32)
            return nn.functional.linear(x, small, self.layer.bias * which) + nn.functional.linear(x, other)

    graph = capture(settled(Computed), (random_data(2, 4), torch.ones(1)))
    (step,) = Pipeline.parse("lower-weights").run(graph).steps
    assert [s.why.partition(";")[0] for s in step.result.skipped] == [
        "its bias is computed, not stored",
        "its weight is computed, not stored",
    ]


def test_other_floats_are_declined():
    class Double(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(torch.float8_e5m2).to(torch.float32), self.bias)

    (step,) = run("lower-weights", Double(4, 3).eval(), random_data(2, 4)).steps
    assert [s.why for s in step.result.skipped] == [
        "its weight is rounded to torch.float8_e5m2; its weights stay rounded floats"
    ]


def test_before_calibration_it_is_an_error():
    with pytest.raises(UsageError, match=r"its weight has no scales yet; calibrate first; run calibrate\{data=none\}"):
        run("insert-fake-quant{activations=none}, lower-weights")


def test_fuel_ends_it():
    fake = run("insert-fake-quant{activations=none, keep=[conv]}, calibrate{data=none}").graph
    part = Pipeline.parse("lower-weights").run(fake, Context(fuel=Fuel(1)))
    assert len(part.graph.calls("linear_weight_only")) == 1
    torch.testing.assert_close(part.graph(X), fake(X), rtol=0, atol=0)


def test_packed_weights_cannot_be_quantized_again():
    message = r"insert-fake-quant: the graph has 'integers' by then; put 'insert-fake-quant' before 'lower-weights'"
    with pytest.raises(UsageError, match=message):
        run("insert-fake-quant{activations=none}, calibrate{data=none}, lower-weights, insert-fake-quant")
