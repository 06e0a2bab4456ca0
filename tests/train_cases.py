"""Graphs and data that the tests of training share."""

from functools import cache

import torch
from models import mlp, resnet
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from planish.ir.capture import capture

FINETUNE = "finetune{epochs=2, lr=0.05, weight-decay=0.01, clip=1.0}"


def examples(shape=(20,), classes=5, count=32):
    """(inputs, labels): each class has a mean of its own, so that there is something to learn."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (count,), generator=generator)
    means = torch.randn(classes, *shape, generator=generator)
    return means[labels] + 0.5 * torch.randn(count, *shape, generator=generator), labels


def batches(size=8, shape=(20,), classes=5, count=32):
    inputs, labels = examples(shape, classes, count)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def loader(size=8, **options):
    """A DataLoader that shuffles."""
    return DataLoader(TensorDataset(*examples()), batch_size=size, **{"shuffle": True, **options})


def mlp_graph():
    return _captured("mlp").copy()


def resnet_graph():
    return _captured("resnet").copy()


def conv_graph():
    """Convs, batch norms and dropout."""
    return _captured("conv").copy()


@cache
def _captured(name):
    model, shape = {"mlp": (mlp, (20,)), "resnet": (resnet, (3, 16, 16)), "conv": (_conv, (3, 8, 8))}[name]
    return capture(model(), torch.randn(2, *shape))


def _conv():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        )
    return model.eval()


def weights(graph):
    return {name: tensor.detach().clone() for name, tensor in graph.weights.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Interrupted:
    """A loader that Ctrl-C stops when it has given so many batches in all."""

    def __init__(self, data, after):
        self.data, self.left = data, after

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        for batch in self.data:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield batch
