"""The loop gives the weights that a loop written out in PyTorch gives, in float64."""

import math

import pytest
import torch
from models import mlp, resnet
from torch import nn
from torch.nn import functional
from train_cases import batches

from planish.ir.capture import capture
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.train.schedule import rate_factor

# Both run the same operations, some in another order (the norm of all gradients): float64 rounding over twelve steps.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def cosine(step, total, warmup):
    """The rate's factor, written out again."""
    return (step + 1) / (warmup + 1) if step < warmup else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / total)


def doubled(data):
    return [(inputs.double(), labels) for inputs, labels in data]


def by_hand(model, data, optimizer, epochs, *, clip=None, accumulate=1, warmup=0, smoothing=0.0, rate=0.05):
    """Train a module in place the way that every PyTorch tutorial does."""
    model.train()
    per_epoch = math.ceil(len(data) / accumulate)
    total, step = epochs * per_epoch, 0
    for _ in range(epochs):
        for start in range(0, len(data), accumulate):
            window = data[start : start + accumulate]
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine(step, total - warmup, warmup)
            optimizer.zero_grad()
            losses = [functional.cross_entropy(model(x), y, label_smoothing=smoothing) for x, y in window]
            torch.stack(losses).mean().backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            step += 1
    model.eval()


def trained(model, x, data, text):
    return Pipeline.parse(text).run(capture(model, x), Context(data=data)).graph


def check(graph, model):
    expected = dict(model.state_dict())
    assert graph.weights.keys() <= expected.keys()
    for name, weight in graph.weights.items():
        torch.testing.assert_close(weight.detach(), expected[name], **CLOSE)


def test_sgd_with_momentum_decay_clipping_accumulation_and_warm_up():
    model, data = mlp().double(), doubled(batches(4, count=28))
    optimizer = "momentum=0.8, nesterov=true, weight-decay=0.01"
    text = f"finetune{{epochs=3, lr=0.05, {optimizer}, clip=0.7, accumulate=3, warmup=2}}"
    graph = trained(model, torch.randn(2, 20).double(), data, text)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.8, nesterov=True, weight_decay=0.01)
    by_hand(model, data, optimizer, 3, clip=0.7, accumulate=3, warmup=2)
    check(graph, model)


def test_adamw_with_label_smoothing():
    model, data = mlp().double(), doubled(batches(8))
    text = "finetune{epochs=3, optimizer=adamw, lr=0.05, weight-decay=0.1, label-smoothing=0.2}"
    graph = trained(model, torch.randn(2, 20).double(), data, text)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.1)
    by_hand(model, data, optimizer, 3, smoothing=0.2)
    check(graph, model)


def test_batch_norms_learn_scales_and_running_statistics():
    model, data = resnet().double(), doubled(batches(8, (3, 8, 8), 10, 24))
    graph = trained(model, torch.randn(2, 3, 8, 8).double(), data, "finetune{epochs=2, lr=0.05}")
    by_hand(model, data, torch.optim.SGD(model.parameters(), momentum=0.9), 2)
    check(graph, model)
    inputs = data[0][0]
    torch.testing.assert_close(graph(inputs), model(inputs), rtol=1e-6, atol=1e-8)  # a net of 9 layers


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_are_those_of_torch(schedule):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedulers = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 10),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    }
    scheduler = schedulers[schedule]()
    for step in range(10):
        # torch multiplies the rate step by step, so rounding adds up
        assert rate_factor(schedule, step, 10, 0) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_warm_up_rises_in_equal_parts():
    rates = [rate_factor("linear", step, 8, 4) for step in range(8)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.75, 0.5, 0.25])
