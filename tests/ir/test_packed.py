"""A graph as bytes and back: nothing of it is lost, and what has no form is refused."""

import models
import pytest
import torch
from torch import nn

import planish
from planish.ir.errors import UsageError
from planish.ir.graph import Graph, named_tensors, transient_buffers
from planish.ir.packed import pack, unpack


def same(one: Graph, two: Graph) -> None:
    """Two graphs that nobody could tell apart, on tensors of their own."""
    assert one.text() == two.text() and one.properties == two.properties
    assert [n.meta.get("source") for n in one.nodes] == [n.meta.get("source") for n in two.nodes]
    tensors = [named_tensors(graph.module) for graph in (one, two)]
    assert list(tensors[0]) == list(tensors[1])
    for name, tensor in tensors[0].items():
        twin = tensors[1][name]
        assert torch.equal(tensor, twin) and tensor.stride() == twin.stride() and tensor is not twin
        assert (type(tensor), tensor.dtype, tensor.requires_grad) == (type(twin), twin.dtype, twin.requires_grad)
    ties = [
        {name: min(n for n, t in found.items() if t is tensor) for name, tensor in found.items()} for found in tensors
    ]
    assert ties[0] == ties[1]
    assert transient_buffers(one.module) == transient_buffers(two.module)
    assert list(one.module.state_dict()) == list(two.module.state_dict())


@pytest.mark.parametrize("recipe", ["", "canonicalize, fold-batch-norm, insert-fake-quant"])
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "densenet"])
def test_a_graph_comes_back_whole(name, recipe):
    make, shape = models.EXAMPLES[name]
    graph = planish.Pipeline.parse(recipe).run(planish.capture(make(), torch.randn(2, *shape))).graph
    facts, members = pack(graph)
    same(graph, unpack(facts, members))
    assert pack(unpack(facts, members)) == (facts, members)


class Odd(nn.Module):
    """Ties, weights that nothing reads, buffers that checkpoints leave out, weights in another order in memory."""

    def __init__(self):
        super().__init__()
        self.b, self.a = nn.Linear(4, 4), nn.Linear(4, 4)
        self.a.weight = self.b.weight
        self.conv = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.unread = nn.Linear(2, 2)
        self.again = self.unread.weight
        self.register_buffer("counter", torch.tensor(3))
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.b.bias.requires_grad_(False)

    def forward(self, x, scale):
        return {"sum": self.a(self.b(x)) + self.shift, "more": [self.conv(x), scale * 2]}


def test_odd_graphs_come_back_whole():
    graph = planish.capture(Odd().eval(), (torch.randn(2, 4, 4, 4), torch.randn(2)))
    assert not graph.weight("conv.weight").is_contiguous()
    twin = unpack(*pack(graph))
    same(graph, twin)
    x, scale = torch.randn(3, 4, 4, 4), torch.randn(3)
    torch.testing.assert_close(twin(x, scale=scale), graph(x, scale=scale), rtol=0, atol=0)


def test_a_part_s_height_is_no_batch_and_refused():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return [self.body(image[None]) for image in images if bool(image.sum() > -1e9)]

    images = [torch.randn(3, 16, 16), torch.randn(3, 20, 24)]
    graph = planish.capture_parts(Detector().eval(), (images,)).graphs["body"]
    with pytest.raises(UsageError, match="only batches are kept"):
        pack(graph)
