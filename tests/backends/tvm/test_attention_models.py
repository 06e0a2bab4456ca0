"""Attention inside models: its kernel is used, reads what is only transposed in place, and gives PyTorch's numbers."""

import shutil
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import planish
from planish.backends.target import Target
from planish.backends.tvm.build import compile_model
from planish.backends.tvm.relax import to_relax


class SelfAttention(nn.Module):
    """As transformers do: heads are split off and put back by transpositions."""

    def __init__(self, causal: bool = False, mask: str = "none"):
        super().__init__()
        self.qkv, self.out, self.causal, self.mask = nn.Linear(12, 36), nn.Linear(12, 12), causal, mask

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, 3, 4).transpose(1, 2) for t in self.qkv(x).split(width, 2))
        mask = {"none": None, "bool": x[:, :, 0] > -0.5, "float": x[:, :, 0]}[self.mask]
        mask = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


CASES = {
    "plain": {},
    "causal": {"causal": True},
    "a mask of flags": {"mask": "bool"},
    "a mask that is added": {"mask": "float"},
}


def captured(model: nn.Module, *shape: int) -> tuple[planish.Graph, torch.Tensor]:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    return planish.capture(model.eval(), (x,)), x


@pytest.mark.parametrize("name", CASES)
def test_models_use_the_kernel(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SelfAttention(**CASES[name])
    graph, x = captured(model, 2, 11, 12)
    relax_model = to_relax(graph, Target.get("local"))  # the batch is known at run time
    assert [layer.kernel.split(",")[0] for layer in relax_model.layers] == ["dense", "attention", "dense"]
    assert "scaled_dot_product_attention" not in relax_model.others
    compiled = compile_model(relax_model, Target.get("local"))
    for batch in (1, 2):
        got, wanted = compiled(x[:batch])[0], model.double()(x[:batch].double())
        model.float()
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)  # sums of 12 and 11 products of order 1


def test_a_c_program_attends():
    """NEON under the emulator; the bundle's own golden pair is verified too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SelfAttention(mask="bool").eval()
    x = torch.randn(2, 11, 12, generator=torch.Generator().manual_seed(3))
    compiled = planish.compile(model, (x,), target="raspberry-pi-4")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    assert any("attention" in layer["kernel"] for layer in compiled.report.layers)


def test_what_no_kernel_takes_is_left_to_tvm():
    """Lengths that are known at run time only, and heads whose count is."""

    class Lengths(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    x = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(3))
    graph = planish.capture(
        torch.export.export(Lengths(), (x,), dynamic_shapes={"x": {2: torch.export.Dim("length", min=2)}})
    )
    model = to_relax(graph, Target.get("local"))
    assert model.others == {"scaled_dot_product_attention": 1}
    torch.testing.assert_close(compile_model(model, Target.get("local"))(x)[0], graph(x), rtol=1e-5, atol=1e-5)


class WrittenOut(nn.Module):
    """Attention as products and a softmax, with norms, on heads that are split off in one of three ways."""

    def __init__(self, way: str):
        super().__init__()
        self.norm, self.qkv, self.out, self.way = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12), way

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).split(width, 2)
        if self.way == "one head":
            return self.out(torch.bmm((torch.bmm(q, k.transpose(1, 2)) / 3).softmax(2), v))
        q, k, v = (t.view(batch, length, 3, 4) for t in (q, k, v))
        k = k.permute(0, 2, 3, 1) if self.way == "permuted" else k.transpose(1, 2).transpose(2, 3)
        shares = (q.transpose(1, 2) @ k / 2).softmax(-1)
        return self.out((shares @ v.transpose(1, 2)).transpose(1, 2).reshape(batch, length, width))


@pytest.mark.parametrize("way", ["one head", "transposed", "permuted"])
def test_attention_that_is_written_out_is_kernels_too(way):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph, x = captured(WrittenOut(way), 2, 11, 12)
    model = to_relax(graph, Target.get("local"))
    families = [layer.kernel.split(",")[0] for layer in model.layers]
    assert families == ["layer norm", "dense", "batched product", "softmax", "batched product", "dense"]
    compiled = compile_model(model, Target.get("local"))
    for batch in (1, 2):
        torch.testing.assert_close(compiled(x[:batch])[0], graph(x[:batch]), rtol=1e-5, atol=1e-5)


def test_between_integers_nothing_is_left_to_tvm():
    """Attention stays float: its heads are quantized as they lie, and the gelu is a table. The batch is symbolic."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.wide, self.narrow = SelfAttention(), nn.Linear(12, 40), nn.Linear(40, 12)

        def forward(self, x):
            return self.narrow(F.gelu(self.wide(self.attention(x))))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph, x = captured(Block(), 2, 11, 12)
    recipe = "insert-fake-quant, calibrate, lower-integers"
    graph = planish.Pipeline.parse(recipe).run(graph, planish.Context(data=[x])).graph
    model = to_relax(graph, Target.get("local"))
    kernels = [layer.kernel.removeprefix("int8 ").split(",")[0] for layer in model.layers]
    assert kernels == ["quantize", "dense", "attention", "quantize", "dense", "dense", "table", "dense"]
    assert not {"quantize", "lookup_int8"} & set(model.others)
    got, wanted = compile_model(model, Target.get("local"))(x)[0], graph(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=float(wanted.abs().max()) / 50)  # a few steps of 8 bits


class Squared(nn.Module):
    """Products of quantized values only: attention without a softmax."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, 3, 4).transpose(1, 2) for t in self.qkv(x).split(width, 2))
        y = torch.relu(q @ k.transpose(2, 3)) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


@cache
def squared() -> tuple[planish.Graph, torch.Tensor]:
    """Made once; tests only read it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph, x = captured(Squared(), 2, 11, 12)
    recipe = "insert-fake-quant, calibrate, lower-integers"
    return planish.Pipeline.parse(recipe).run(graph, planish.Context(data=[x])).graph, x


# Unicorn has no smmla.
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
SMMLA = pytest.param("graviton3", marks=pytest.mark.skipif(not QEMU, reason="qemu-user is not installed"))


@pytest.mark.parametrize("target", ["local", "x86-64-v3", "raspberry-pi-4", "raspberry-pi-5", SMMLA])
def test_products_of_integers_are_the_bytes_of_the_graph(target):
    """Cortex-A72 has no kernel that takes -128 on both sides: TVM's loops are exact too."""
    graph, x = squared()
    assert len(graph.calls("matmul_int32")) == 2
    compiled = planish.compile(graph, recipe="", batch=2, target=target)
    assert torch.equal(compiled(x), graph(x))
    kernels = [layer["kernel"] for layer in compiled.report.layers if "batched product" in layer["kernel"]]
    assert len(kernels) == (0 if target == "raspberry-pi-4" else 2)
    assert all(kernel.startswith("int8") for kernel in kernels)
