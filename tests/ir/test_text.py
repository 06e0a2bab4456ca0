import torch
from torch import nn

import planish
from planish.ir.text import node_text


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.head.weight = nn.Parameter(torch.ones(4, 8))

    def forward(self, x, mask, scale=0.5):
        x = nn.functional.hardtanh(self.bn(self.conv(x)), 0.0, 6.0)
        a, b = x.split(4, 1)
        x = torch.cat([b, a], 1).flatten(2).mean(2)
        y = self.head(x.reshape(x.shape[0], -1)) * scale
        return {"logits": y, "kept": (y > 0) & mask, "top": tuple(y.max(1))}


def everything():
    return planish.capture(Everything(), (torch.randn(2, 3, 8, 8), torch.ones(2, 4, dtype=torch.bool), 0.25))


def test_text_of_many_forms(golden):
    golden(str(everything()))


def test_text_of_a_fixed_batch(golden):
    model = nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2), nn.GELU(approximate="tanh"))
    golden(str(planish.capture(model, torch.randn(1, 4, 5), dynamic_batch=False)))


def test_text_is_the_same_for_a_copy_and_a_saved_graph(tmp_path):
    graph = everything()
    graph.save(tmp_path / "g")
    assert str(graph.copy()) == str(graph) == str(planish.Graph.load(tmp_path / "g"))


def test_a_nodes_own_line():
    graph = planish.capture(nn.Linear(4, 3), torch.randn(2, 4))
    assert node_text(graph, graph.node("linear")) == "%linear = linear(%input_1, weight[3,4], bias[3]) : f32[b,3]"


def test_a_call_that_writes_in_place_shows_its_mark():
    class Assign(nn.Module):
        def forward(self, x):
            y = x.clone()
            y[:, :2] = 0
            return y

    text = str(planish.capture(Assign(), torch.randn(3, 4)))
    assert "fill_(" in text or "copy_(" in text
