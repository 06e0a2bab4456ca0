"""Training through quantizers: frozen scales, batch norms, checkpoints, and that the result is fit to be lowered."""

import pytest
import torch
from aware_cases import ACTIVATIONS, DATA, QUANTIZED, WEIGHTS, quantized, run, scales
from lower_cases import Lowered, differences
from torch import nn
from train_cases import Interrupted, batches, conv_graph, resnet_graph, same, weights

import planish
from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.ops import arguments
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.lower.exact import is_exact
from planish.passes.train.frozen_norms import QuantizedNorms
from planish.passes.train.training_form import TrainingForm


def test_scales_stay_and_weights_are_trained_straight_through():
    before = quantized()
    after, result = run("finetune{epochs=2, lr=0.01}", before)
    for op in (ACTIVATIONS, WEIGHTS):
        assert same(scales(before, op), scales(after, op))
    moved = [n for n in before.parameters if not torch.equal(before.weight(n), after.weight(n))]
    assert moved == list(before.parameters) and result.details["scales"] == "frozen"
    assert result.details["loss"][-1] < result.details["loss"][0]


def test_the_gradient_through_quantizers_is_that_of_the_layers_between_them():
    """One linear layer, in float64: dL/dw = mask(w) * (g^T quantized(x)), dL/dx is not asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 3).eval()
    x = torch.randn(5, 6)
    graph = run(QUANTIZED, capture(model, (x,)), [x])[0]
    largest = int(graph.weight("weight")[0].abs().argmax())
    graph.weight("weight").data[0, largest] *= 3  # beyond its channel's scale: it saturates
    call = arguments(graph.calls(WEIGHTS)[0])
    steps = graph.weight("weight").double() / graph.weight(call.scale).double()[:, None]
    inside = steps.round().abs() <= 127
    output = TrainingForm(graph)((x,)).outputs
    gradient = torch.linspace(-1, 1, 15).reshape(5, 3)
    (output[0] if isinstance(output, (tuple, list)) else output).backward(gradient)
    call = arguments(graph.calls(ACTIVATIONS)[0])
    scale, zero = graph.weight(call.scale).double(), graph.weight(call.zero_point)
    read = (((x.double() / scale).round() + zero).clamp(-128, 127) - zero) * scale
    expected = (gradient.double().T @ read) * inside
    assert not inside[0, largest] and inside.sum() > 10
    torch.testing.assert_close(graph.weight("weight").grad.double(), expected, rtol=1e-5, atol=1e-6)  # float32 sums


def test_quantizers_that_were_never_set_are_named():
    graph = Pipeline.parse("fold-batch-norm, insert-fake-quant").run(conv_graph()).graph
    with pytest.raises(UsageError, match=r"the scale '.*_scale' was never set; put 'calibrate' between"):
        run("finetune", graph)


class Norms(nn.Module):
    """Batch norms as part of a conv, alone between quantizers, and behind the last quantizer."""

    def __init__(self):
        super().__init__()
        self.conv, self.folded = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.alone = nn.BatchNorm2d(6)
        self.head, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        y = torch.relu(self.folded(self.conv(x)))
        y = torch.relu(self.alone(y + y.flip(3)))
        return self.last(self.head(y.mean((2, 3))))


def norms_graph():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return run(QUANTIZED, capture(Norms().eval(), (DATA[0][0][:2],)))[0]


@pytest.mark.parametrize(("option", "moving"), [("", {"last"}), (", freeze-batch-norm=2", {"last", "folded"})])
def test_norms_with_a_quantizer_behind_them_keep_their_statistics(option, moving):
    before = norms_graph()
    after, _ = run(f"finetune{{steps=4, lr=0.01{option}}}", before)
    for norm in ("folded", "alone", "last"):
        statistics = [f"{norm}.running_mean", f"{norm}.running_var"]
        moved = {n for n in statistics if not torch.equal(before.weight(n), after.weight(n))}
        assert moved == (set(statistics) if norm in moving else set())
        assert not torch.equal(before.weight(f"{norm}.weight"), after.weight(f"{norm}.weight"))  # trained all the same


def test_norms_freeze_at_their_step():
    """Statistics after four steps of which two are frozen are those after two."""
    graph = norms_graph()
    two, _ = run("finetune{steps=2, lr=0.01, schedule=constant, freeze-batch-norm=2}", graph)
    four, _ = run("finetune{steps=4, lr=0.01, schedule=constant, freeze-batch-norm=2}", graph)
    for name in ("folded.running_mean", "folded.running_var"):
        assert torch.equal(two.weight(name), four.weight(name))
    assert not torch.equal(two.weight("conv.weight"), four.weight("conv.weight"))


def test_a_norm_in_training_form_is_one_folded_with_correction():
    """Krishnamoorthi, section 3.2.2, in float64: w * gamma / sigma_running is quantized, then corrected."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
        for tensor, low, high in ((model[1].weight, 0.5, 2.0), (model[1].running_var, 0.2, 3.0)):
            nn.init.uniform_(tensor, low, high)
        nn.init.normal_(model[1].bias)
    x = torch.randn(6, 3, 8, 8)
    graph = run("insert-fake-quant{weight-bits=3}, calibrate", capture(model, (x[:2],)), [x])[0]
    (norm,) = QuantizedNorms.of(graph).folded
    form = TrainingForm(graph, [norm])
    (mine,) = form((x,)).inner

    gamma, beta, variance = (graph.weight(f"1.{n}").double() for n in ("weight", "bias", "running_var"))
    running = (variance + 1e-5).sqrt()
    call = arguments(graph.calls(WEIGHTS)[0])
    folded_scale = graph.weight(call.scale).double() * gamma / running
    folded = graph.weight("0.weight").double() * (gamma / running)[:, None, None, None]
    levels = (folded / folded_scale[:, None, None, None]).round().clamp(-3, 3)
    call = arguments(graph.calls(ACTIVATIONS)[0])
    read = torch.fake_quantize_per_tensor_affine(x, graph.weight(call.scale), graph.weight(call.zero_point), -128, 127)
    product = nn.functional.conv2d(read.double(), levels * folded_scale[:, None, None, None])
    plain = product * (running / gamma)[:, None, None]  # as the unfolded layer gives it
    mean, batch = plain.mean((0, 2, 3)), (plain.var((0, 2, 3), correction=0) + 1e-5).sqrt()
    expected = product * (running / batch)[:, None, None] + (beta - gamma * mean / batch)[:, None, None]
    torch.testing.assert_close(mine.detach().double(), expected, rtol=1e-4, atol=1e-5)  # float32 against float64


def test_the_float_model_teaches_its_quantized_form():
    """Without labels: soft labels and layer outputs of the float model bring the 3-bit one nearer to it."""
    teacher = run("fold-batch-norm", run("finetune{epochs=6, lr=0.05}", conv_graph())[0])[0]
    images = [x for x, _ in DATA]
    text = "insert-fake-quant{weight-bits=3, activation-bits=4}, calibrate"
    plain = run(text, teacher, images)[0]
    for options in ("distill=1", "distill=1, features=0.5"):
        taught = run(f"{text}, finetune{{epochs=8, lr=0.01, {options}, scales=learned}}", teacher, images)[0]
        x = torch.cat(images)
        with torch.no_grad():
            wanted = teacher(x)
            assert float((taught(x) - wanted).square().mean()) < 0.7 * float((plain(x) - wanted).square().mean())


@pytest.mark.parametrize(("optimizer", "after"), [("sgd", 2), ("sgd", 9), ("adamw", 7)])
def test_after_an_interrupt_it_goes_on_to_the_same_scales(tmp_path, optimizer, after):
    """Batch norms that freeze on the way, dropout, momentum, learned scales: bits and report are the same."""
    options = f"epochs=3, optimizer={optimizer}, lr=0.005, checkpoint-every=2, scales=learned, freeze-batch-norm=5"
    expected, result = run(f"finetune{{{options}}}", quantized(""))
    text = f'finetune{{{options}, checkpoint="{tmp_path}"}}'
    with pytest.raises(KeyboardInterrupt):
        run(text, quantized(""), Interrupted(DATA, after))
    resumed, other = run(text, quantized(""))
    assert same(weights(expected), weights(resumed)) and other.details == result.details
    with pytest.raises(UsageError, match="it is of another run: its list of options"):
        run(text.replace("learned", "frozen"), quantized(""))


@pytest.mark.parametrize("before", ["fold-batch-norm, ", ""])
def test_what_was_trained_is_lowered_and_means_the_same(before):
    """Every quantizer of the integer graph is within a step of the fake-quantized one on the same inputs."""
    fake, _ = run("finetune{epochs=3, lr=0.005, scales=learned, freeze-batch-norm=4}", quantized(before))
    outcome = Pipeline.parse("lower-integers").run(fake)
    result = outcome.steps[0].result
    assert result.details["integer_macs"] == 1.0 and not result.skipped
    assert is_exact(outcome.graph)
    x = torch.cat([x for x, _ in DATA])
    found = differences(Lowered(fake, fake, outcome.graph, result, x), x)
    assert found and all(d.most <= 1 and d.share < 0.02 for d in found), found
    with torch.no_grad():
        assert torch.equal(outcome.graph(x).argmax(1), fake(x).argmax(1))


def test_pruning_then_quantization_aware_training_is_one_recipe():
    path = planish.__path__[0] + "/passes/recipes/quantization-aware.toml"
    outcome = Pipeline.parse(path).run(resnet_graph(), Context(data=batches(16, (3, 16, 16), 10)))
    assert outcome.steps[-1].cost.macs / outcome.before.macs <= 0.5025
    aware = outcome.steps[-2].result.details
    assert aware["scales"] == "learned" and aware["learned_scales"] > 20
    assert outcome.steps[-1].result.details["integer_macs"] == 1.0
    assert outcome.graph(torch.randn(3, 3, 16, 16)).isfinite().all()
