"""rebind: momentum of the surviving channels, checked against PyTorch's own optimizer on a masked model."""

import pytest
import torch
from torch import nn

import planish
from planish.ir.errors import UsageError
from planish.passes.pipeline import Pipeline

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}


class Grouped(nn.Module):
    """Two convs of which the second is grouped, a batch norm, and weights that are tied or frozen."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.head = nn.Linear(8, 4)
        self.first.bias.requires_grad_(False)  # type: ignore[union-attr]

    def forward(self, x):
        y = torch.relu(self.norm(self.second(torch.relu(self.first(x))))).mean((2, 3))
        return self.head(torch.relu(self.b(torch.relu(self.a(y)))))


def trained(graph, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(4, 3, 9, 9, generator=generator)
        optimizer.zero_grad()
        graph.module(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_of_surviving_channels_stays(name):
    torch.manual_seed(0)
    graph = planish.capture(Grouped(), torch.randn(2, 3, 9, 9))
    optimizer = OPTIMIZERS[name](graph.module.parameters())
    trained(graph, optimizer, 3)
    before = {n: dict(optimizer.state[p]) for n, p in graph.module.named_parameters() if p in optimizer.state}
    outcome = Pipeline.parse("prune-channels{ratio=0.5}").run(graph)
    assert planish.rebind(optimizer, outcome) is optimizer
    survivors = outcome.steps[0].result.survivors
    assert survivors["second.weight"].blocks is not None  # its groups lose channels of their own
    named = dict(outcome.graph.module.named_parameters())
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in named.values()}
    for parameter_name, parameter in named.items():
        if parameter_name not in before:
            assert not parameter.requires_grad
            continue
        for key, value in before[parameter_name].items():
            now = optimizer.state[parameter][key]
            assert now.shape == (parameter.shape if value.ndim else value.shape)
            assert torch.equal(now, survivors.take(parameter_name, value) if value.ndim else value)
    trained(outcome.graph, optimizer, 1)  # and it steps


def test_momentum_goes_with_its_own_entries():
    """Where the gradient is the weight itself, momentum is a multiple of the weight before and after the cut."""
    torch.manual_seed(0)
    graph = planish.capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 6))
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.0, momentum=0.9)
    for parameter in graph.module.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    outcome = Pipeline.parse("prune-channels{ratio=0.5}").run(graph)
    planish.rebind(optimizer, outcome)
    for parameter in outcome.graph.module.parameters():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], parameter)


def test_the_optimizer_of_the_model_itself():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    model(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    outcome = Pipeline.parse("prune-channels{ratio=0.5}").run(planish.capture(model, torch.randn(2, 6)))
    planish.rebind(optimizer, outcome, model)
    assert [[list(p.shape) for p in g["params"]] for g in optimizer.param_groups] == [[[4, 6], [4]], [[3, 4], [3]]]
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.2]


def test_parameters_that_are_gone_or_new():
    """Folding takes a batch norm's parameters away and gives the conv a bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()
    graph = planish.capture(model, torch.randn(2, 3, 9, 9))
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.1, momentum=0.9)
    graph.module(torch.randn(2, 3, 9, 9)).sum().backward()
    optimizer.step()
    outcome = Pipeline.parse("prune-channels{ratio=0.5}, fold-batch-norm").run(graph)
    planish.rebind(optimizer, outcome)
    held = optimizer.param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in outcome.graph.module.parameters()}
    assert len(optimizer.state) == 3


def test_a_foreign_optimizer_is_refused():
    graph = planish.capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 6))
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    held = list(optimizer.param_groups[0]["params"])
    outcome = Pipeline.parse("prune-channels{ratio=0.5}").run(graph)
    with pytest.raises(UsageError, match=r"rebind: the optimizer holds a parameter of shape \[2, 2\] that is not"):
        planish.rebind(optimizer, outcome)
    assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"], strict=True))
