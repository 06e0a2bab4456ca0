"""Scales that are learned (LSQ): what moves, what is rounded and shared, what is reported."""

import pytest
import torch
from aware_cases import ACTIVATIONS, DATA, QUANTIZED, WEIGHTS, quantized, run, scales
from torch import nn
from train_cases import batches, mlp_graph, same

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.ir.ops import arguments
from planish.passes.pipeline import Pipeline
from planish.passes.quantize.scales import short
from planish.passes.train.learned_scales import LearnedScales


def zero_points(graph):
    return [graph.weight(arguments(q).zero_point) for q in graph.calls(ACTIVATIONS, WEIGHTS)]


def test_learned_scales_need_quantizers():
    with pytest.raises(UsageError, match="the graph has no quantizers; put 'insert-fake-quant' and 'calibrate' before"):
        run("finetune{scales=learned}", mlp_graph(), batches())
    with pytest.raises(UsageError, match="unknown scales 'learnt'"):
        Pipeline.parse("finetune{scales=learnt}")
    with pytest.raises(UsageError, match="freeze-batch-norm is -1; expected 0"):
        Pipeline.parse("finetune{freeze-batch-norm=-1}")


@pytest.mark.parametrize("options", ["lr=0.001", "lr=0.002, optimizer=adamw, weight-decay=0.1"])
def test_learned_scales_leave_an_ordinary_calibrated_graph(options):
    before = quantized()
    after, result = run(f"finetune{{epochs=4, {options}, scales=learned}}", before)
    assert after.properties == before.properties >= {"calibrated", "fake-quant", "no-batch-norm"}
    assert [n.target for n in after.nodes] == [n.target for n in before.nodes]  # the quantizers are aten's
    assert after.parameters.keys() == before.parameters.keys()
    for op in (ACTIVATIONS, WEIGHTS):
        old, new = scales(before, op), scales(after, op)
        assert old.keys() == new.keys() and all(bool((scale > 0).all()) for scale in new.values())
        assert all(not isinstance(scale, nn.Parameter) for scale in new.values())
        assert any(not torch.equal(old[name], new[name]) for name in old)
    assert all(float(s) == short(float(s), 255) for s in scales(after, ACTIVATIONS).values())  # 10 bits at most
    assert all(torch.equal(a, b) for a, b in zip(zero_points(before), zero_points(after), strict=True))
    assert result.details["learned_scales"] == len(scales(before, ACTIVATIONS)) + len(scales(before, WEIGHTS))
    assert 1 < result.details["largest_scale_change"] < 3 and not result.skipped


def test_scales_are_not_decayed():
    """With a rate so small that gradients move nothing, a strong decay still moves weights, and no scale."""
    before = quantized()
    after, _ = run("finetune{lr=1e-7, weight-decay=1e5, scales=learned, steps=1, schedule=constant}", before)
    ratio = after.weight("0.weight") / before.weight("0.weight")
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.99), rtol=1e-3, atol=0)  # 1 - 1e-7 * 1e5
    for name, scale in scales(before, WEIGHTS).items():
        torch.testing.assert_close(after.weight(name), scale, rtol=1e-4, atol=0)


def test_what_is_measured_is_what_leaves():
    """`evaluate` sees graphs with rounded scales, and early stopping goes back to one of them."""
    seen = []

    def evaluate(graph):
        seen.append(scales(graph, ACTIVATIONS).copy())
        assert all(float(s) == short(float(s), 255) for s in seen[-1].values())
        seen[-1] = {name: scale.clone() for name, scale in seen[-1].items()}
        return -abs(len(seen) - 3.0)  # the third, which is after the second epoch, is the best

    after, result = run("finetune{epochs=4, lr=0.02, scales=learned, early-stop=2}", quantized(), evaluate=evaluate)
    assert same(scales(after, ACTIVATIONS), seen[2]) and result.details["metric"][1] == 0
    assert not same(seen[2], seen[-1])


def test_frozen_weights_with_learned_scales_train_scales_alone():
    before = quantized()
    for parameter in before.parameters.values():
        parameter.requires_grad_(False)
    after, _ = run("finetune{epochs=2, lr=0.02, scales=learned}", before)
    assert all(torch.equal(after.weight(n), p) for n, p in before.parameters.items())
    assert not same(scales(before, WEIGHTS), scales(after, WEIGHTS))


def test_one_step_changes_a_scale_by_two_per_cent_at_most():
    """However large the gradient: steps of SGD are absolute, and a scale below zero would never come back."""
    before = quantized()
    after, result = run("finetune{steps=1, lr=1e4, scales=learned, schedule=constant}", before)
    assert not result.skipped
    for name, scale in scales(after, WEIGHTS).items():
        ratio = scale / before.weight(name)
        assert bool((ratio <= 1.02 + 1e-6).all() and (ratio >= 1 / 1.02 - 1e-6).all())  # float32
    moved = torch.cat([s / before.weight(n) for n, s in scales(after, WEIGHTS).items()])
    assert bool((moved > 1.019).any() and (moved < 0.981).any())


@pytest.mark.parametrize("relative", [False, True])
def test_a_scale_that_is_lost_stops_at_its_limit(relative):
    before = quantized()
    learned = LearnedScales(graph := before.copy(), relative=relative)
    for _ in range(300):  # 1.02 ** 281 is 256
        with torch.no_grad():
            for at, latent in enumerate(learned.parameters.values()):
                latent.mul_(1e-9 if at % 2 else 1e9)
        learned.write()
    assert learned.at_limit() == list(learned.parameters)
    for op in (ACTIVATIONS, WEIGHTS):
        for name, scale in scales(graph, op).items():
            ratio = scale / before.weight(name)
            shrunk = torch.full_like(ratio, 1 / 256)
            # short() rounds an activation's scale up, by 2**-9 at most
            torch.testing.assert_close(ratio, shrunk if ratio.max() < 1 else 1 / shrunk, rtol=2**-9, atol=0)


def test_a_scale_that_is_lost_is_reported(monkeypatch):
    monkeypatch.setattr("planish.passes.train.learned_scales.LARGEST_STEP", 1e9)
    _, result = run("finetune{steps=1, lr=1e4, scales=learned, schedule=constant}", quantized())
    assert result.skipped and all("moved it to its limit, 256 times off" in skip.why for skip in result.skipped)


def test_inputs_of_a_concat_still_share_their_scale():
    class Concat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(torch.relu(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3)))

    graph = run(QUANTIZED, capture(Concat().eval(), (DATA[0][0][:2],)))[0]
    names = [arguments(q).scale.target for q in graph.calls(ACTIVATIONS)]
    assert len(set(names)) < len(names)
    after, result = run("finetune{epochs=2, lr=0.02, scales=learned}", graph)
    assert result.details["learned_scales"] == len(set(names)) + 3
    assert Pipeline.parse("lower-integers").run(after).steps[0].result.details["integer_macs"] == 1.0


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_narrow_products(amp):
    after, result = run(f"finetune{{epochs=3, lr=0.02, scales=learned, amp={amp}}}", quantized())
    assert result.details["loss"][-1] < result.details["loss"][0]
    assert all(scale.dtype == torch.float32 for scale in scales(after, WEIGHTS).values())


def toy(count, seed, noise=2.6, classes=8):
    """Images of eight patterns under so much noise that a float model gets nine of ten."""
    patterns = torch.randn(classes, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return patterns[labels] + noise * torch.randn(count, 3, 8, 8, generator=generator), labels


def test_learned_steps_win_back_what_three_bits_cost():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convs = [nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.Conv2d(12, 16, 3, padding=1, bias=False)]
        first, second = (nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()) for conv in convs)
        model = nn.Sequential(first, second, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 8)).eval()
    images, labels = toy(1024, seed=1)
    data = list(zip(images.split(32), labels.split(32), strict=True))
    held_out, wanted = toy(4000, seed=2)

    def accuracy(graph):
        with torch.no_grad():
            return float((graph(held_out).argmax(1) == wanted).float().mean())

    trained, _ = run(
        "finetune{epochs=6, lr=0.05, weight-decay=0.01}, fold-batch-norm", capture(model, (images[:2],)), data
    )
    text = "insert-fake-quant{weight-bits=3, activation-bits=3}, calibrate"
    plain, _ = run(text, trained, data)
    learned, _ = run(f"{text}, finetune{{epochs=6, lr=0.002, optimizer=adamw, scales=learned}}", trained, data)
    # 91.4 % in float, 83.1 % calibrated, 88.2 % learned; one point is 40 images, and bits differ between machines
    assert accuracy(learned) >= accuracy(plain) + 0.02
    assert accuracy(learned) >= accuracy(trained) - 0.05
