import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import planish
from planish.ir.cost import cost


def counted_macs(model, *inputs):
    """PyTorch's own counter: two operations a multiply-accumulate."""
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2


class Attention(nn.Module):
    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (nn.Linear(5, 7), [(3, 4, 5)]),
        (nn.Conv1d(4, 6, 3, padding=1, groups=2), [(2, 4, 9)]),
        (nn.Conv2d(3, 8, (3, 5), stride=2, dilation=(1, 2)), [(2, 3, 16, 20)]),
        (nn.Conv2d(8, 8, 3, groups=8), [(2, 8, 7, 7)]),
        (nn.Conv3d(2, 4, 3), [(2, 2, 5, 6, 7)]),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2), [(2, 6, 5, 5)]),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)),
            [(2, 3, 8, 8)],
        ),
        (Attention(), [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)]),
    ],
    ids=["linear", "conv1d", "conv2d", "depthwise", "conv3d", "transposed", "network", "attention"],
)
def test_macs_match_pytorchs_flop_counter(model, shapes):
    model = model.eval()
    inputs = tuple(torch.randn(*shape) for shape in shapes)
    graph = planish.capture(model, inputs)
    batch = shapes[0][0]
    assert cost(graph, batch=batch).macs == counted_macs(model, *inputs)


@pytest.mark.parametrize("op", ["mm", "bmm", "matmul", "addmm", "baddbmm", "mv"])
def test_macs_of_matrix_products(op):
    shapes = {
        "mm": [(3, 4), (4, 5)],
        "bmm": [(2, 3, 4), (2, 4, 5)],
        "matmul": [(2, 1, 3, 4), (6, 4, 5)],
        "addmm": [(5,), (3, 4), (4, 5)],
        "baddbmm": [(2, 3, 5), (2, 3, 4), (2, 4, 5)],
        "mv": [(3, 4), (4,)],
    }[op]

    class Product(nn.Module):
        def forward(self, *values):
            return getattr(torch, op)(*values)

    inputs = tuple(torch.randn(*shape) for shape in shapes)
    graph = planish.capture(Product(), inputs, dynamic_batch=False)
    by_hand = {"mm": 60, "bmm": 120, "matmul": 2 * 6 * 60, "addmm": 60, "baddbmm": 120, "mv": 12}[op]
    assert cost(graph).macs == by_hand


def test_macs_of_a_recurrent_layer_by_hand():
    graph = planish.capture(nn.LSTM(3, 4, batch_first=True), torch.randn(2, 6, 3))
    # Four gates, each with an input and a hidden product, for 2 x 6 steps.
    assert cost(graph, batch=2).macs == 2 * 6 * 4 * (3 * 4 + 4 * 4)


def test_parameters_bytes_and_the_batch():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    found = cost(planish.capture(model, torch.randn(2, 4)), batch=3)
    assert found.params == 16 + 4 + 4 + 4 + 4
    assert found.bytes == 4 * (16 + 4 + 4 + 4 + 4 + 4 + 4)  # running mean and variance are bytes, not parameters
    assert found.macs == 3 * (16 + 16)
    assert found.by_op == {"linear": 96}
    assert found.by_node["linear_1"].weight_bytes == 4 * (16 + 4)
    assert found.by_node["linear_1"].output_bytes == 4 * 3 * 4


def test_peak_memory_by_hand():
    class Wide(nn.Module):
        def forward(self, x):
            wide = torch.cat([x, x, x], 1)  # 10 + 30 alive
            return torch.relu(wide).sum(1)  # 30 + 30 alive, then 30 + 1

    graph = planish.capture(Wide(), torch.randn(2, 10))
    assert cost(graph, batch=1).peak_bytes == 4 * 60
    assert cost(graph, batch=8).peak_bytes == 8 * 4 * 60


def test_peak_memory_keeps_a_shortcut_and_shares_views():
    class Shortcut(nn.Module):
        def forward(self, x):
            y = torch.relu(x)
            return torch.tanh(y.view(-1, 2, 5)).view(-1, 10) + y  # y lives through tanh: 10 + 10, then the sum

    graph = planish.capture(Shortcut(), torch.randn(2, 10))
    assert cost(graph).peak_bytes == 4 * 30


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bik,bkj->bij", [(2, 3, 5), (2, 5, 7)]),
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 8), (2, 3, 6, 8)]),
        ("...ij,jk->...ik", [(2, 3, 4, 5), (5, 6)]),
    ],
)
def test_einsum_counts_as_many_products_as_torchs_flop_counter(equation, shapes):
    class Contract(nn.Module):
        def forward(self, *operands):
            return torch.einsum(equation, *operands)

    operands = tuple(torch.randn(shape) for shape in shapes)
    with FlopCounterMode(display=False) as counter:
        torch.einsum(equation, *operands)
    graph = planish.capture(Contract(), operands, dynamic_batch=False)
    assert cost(graph).macs == counter.get_total_flops() // 2
