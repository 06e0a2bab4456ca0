"""Rows of convs and linear layers against PyTorch's own."""

import pytest
import torch
from torch import nn

import planish
from planish.passes.layers.patches import outputs_of, rows_of


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYERS = {
    "linear": (nn.Linear(6, 4), (2, 5, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv2d, grouped": (nn.Conv2d(6, 8, 3, stride=2, padding=(1, 0), groups=2), (2, 6, 7, 9)),
    "conv2d, dilated": (nn.Conv2d(4, 6, (2, 3), dilation=(2, 1), padding=2), (2, 4, 8, 7)),
    "conv2d, same": (nn.Conv2d(4, 6, (2, 3), padding="same"), (2, 4, 8, 7)),
    "conv2d, depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 4, 3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_weight_are_the_output(name):
    layer, shape = LAYERS[name]
    layer = layer.double().eval()
    graph = planish.capture(layer, (normal(*shape),))
    (node,) = graph.calls("linear", "conv1d", "conv2d", "conv3d")
    x, weight, groups = normal(*shape, seed=1), layer.weight.detach(), getattr(layer, "groups", 1)
    rows, wanted = rows_of(node, x, weight), outputs_of(node, layer(x).detach(), weight, groups)
    product = rows @ weight.flatten(1).unflatten(0, (groups, -1)).mT + layer.bias.detach().view(groups, 1, -1)
    torch.testing.assert_close(product, wanted, rtol=1e-12, atol=1e-12)  # float64 sums in another order


@pytest.mark.parametrize("name", LAYERS)
def test_chosen_positions_are_those_of_all(name):
    """The third and the first position of every sample; of a linear layer, the third and the first row."""
    layer, shape = LAYERS[name]
    layer = layer.double().eval()
    graph = planish.capture(layer, (normal(*shape),))
    (node,) = graph.calls("linear", "conv1d", "conv2d", "conv3d")
    x, weight, groups = normal(*shape, seed=1), layer.weight.detach(), getattr(layer, "groups", 1)
    y, at = layer(x).detach(), torch.tensor([2, 0])
    samples = 1 if isinstance(layer, nn.Linear) else len(x)
    for chosen, whole in (
        (rows_of(node, x, weight, at), rows_of(node, x, weight)),
        (outputs_of(node, y, weight, groups, at), outputs_of(node, y, weight, groups)),
    ):
        assert torch.equal(chosen, whole.unflatten(1, (samples, -1))[:, :, at].flatten(1, 2))
