"""layer_latency: whole layers run on a device; how long they take is nobody's business here."""

import pytest
import torch
from torch import nn

import planish
from planish.passes.quantize.accuracy.alone import layer_alone
from planish.passes.quantize.accuracy.reference import float_form, quantized_layers


@pytest.mark.parametrize("how", ["integers", "weights", "float"])
def test_a_layer_is_timed_by_itself(how):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU6(), nn.Linear(16, 4)).eval()
    images = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    graph = planish.capture(model, (images,))
    calibrated = planish.Pipeline.parse("insert-fake-quant, calibrate").run(graph, planish.Context(data=[images])).graph
    layer = quantized_layers(calibrated, float_form(calibrated))[1]
    alone = layer_alone(calibrated, layer, how)
    assert [spec.shape for spec in (*alone.inputs, *alone.outputs)] == [("b", 16), ("b", 16)]
    assert (alone.calls("hardtanh", "relu6") and "calibrated" in alone.properties) or how == "float"
    assert 0 < planish.layer_latency(runs=2)(alone) < 60_000


def test_an_unknown_target_is_refused_at_once():
    with pytest.raises(planish.PlanishError, match="unknown target 'raspberry-pie-4'; did you mean 'raspberry-pi-4'"):
        planish.layer_latency("raspberry-pie-4")
