"""Whole small models through Relax and TVM against PyTorch in float64."""

from functools import cache

import pytest
import torch
from example_graphs import example_graph
from models import EXAMPLES
from torch import nn
from torch.nn import functional as F

from planish import Target, capture
from planish.backends.tvm.build import CompiledModel, compile_model
from planish.backends.tvm.relax import to_relax, unsupported
from planish.ir.errors import BuildError
from planish.ir.graph import Graph
from planish.ir.specialize import fix_batch
from planish.passes.pipeline import Pipeline

# float32 sums in another order than PyTorch's: a few units in the last place per layer, on outputs of order 1.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}


def folded(name: str) -> Graph:
    return Pipeline.parse("fold-batch-norm").run(example_graph(name)).graph


def image(shape: tuple[int, ...], batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


@cache
def compiled_example(name: str) -> CompiledModel:
    """One of the usual models for a batch of one; tests only call it."""
    graph = fix_batch(folded(name), 1)
    return compile_model(to_relax(graph, Target.get("local")), Target.get("local"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_model_with_a_fixed_batch_agrees_with_pytorch(name):
    make, shape = EXAMPLES[name]
    x = image(shape)
    torch.testing.assert_close(compiled_example(name)(x)[0].double(), make().double()(x.double()), **FLOAT32)


@pytest.mark.parametrize("name", ["efficientnet", "mlp"])
def test_a_dynamic_batch_survives(name):
    make, shape = EXAMPLES[name]
    compiled = compile_model(to_relax(folded(name), Target.get("local")), Target.get("local"))
    model = make().double()
    for batch in (1, 3, 5):
        x = image(shape, batch)
        torch.testing.assert_close(compiled(x)[0].double(), model(x.double()), **FLOAT32)


def test_a_dynamic_batch_of_tokens():
    """Rows are two dims, one of them known at run time."""
    model = nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 5))
    graph = capture(model.eval(), (torch.randn(2, 3, 6),))
    compiled = compile_model(to_relax(graph, Target.get("local")), Target.get("local"))
    for batch in (1, 7):
        x = image((3, 6), batch)
        torch.testing.assert_close(compiled(x)[0].double(), graph(x).double(), **FLOAT32)


class Shapes(nn.Module):
    """Pools, a pad of one side, a dilated conv, a grouped conv, a cat and a strided 1x1."""

    def __init__(self):
        super().__init__()
        self.dilated = nn.Conv2d(3, 16, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(16, 32, 3, groups=4)
        self.strided = nn.Conv2d(32, 16, 1, stride=2)
        self.head = nn.Linear(48, 7)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = F.hardswish(self.dilated(x))
        y = F.silu(self.grouped(F.pad(y, (0, 1, 0, 1))))
        z = self.strided(y)
        joined = torch.cat([z, F.max_pool2d(y, 3, 2, 1)[:, :, : z.shape[2], : z.shape[3]]], 1)
        pooled = F.avg_pool2d(joined, 2).mean((2, 3))
        return {"logits": self.head(pooled), "features": joined * torch.sigmoid(joined)}


def test_windows_of_every_kind_and_structured_outputs():
    model, x = Shapes().eval(), image((3, 17, 15))
    graph = fix_batch(capture(model, (x,)), 1)
    outputs = compile_model(to_relax(graph, Target.get("local")), Target.get("local"))(x)
    wanted = model.double()(x.double())
    torch.testing.assert_close(outputs[0].double(), wanted["logits"], **FLOAT32)
    torch.testing.assert_close(outputs[1].double(), wanted["features"], **FLOAT32)


def test_two_convs_that_meet_in_an_add_share_one_epilogue():
    class Meet(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x):
            return torch.relu(self.left(x) + self.right(x))

    model, x = Meet().eval(), image((3, 9, 9))
    relax_model = to_relax(fix_batch(capture(model, (x,)), 1), Target.get("local"))
    families = [layer.kernel.split()[0].rstrip(",") for layer in relax_model.layers]
    assert len([f for f in families if f in ("direct", "pointwise")]) == 2
    assert not relax_model.others
    compiled = compile_model(relax_model, Target.get("local"))
    torch.testing.assert_close(compiled(x)[0].double(), model.double()(x.double()), **FLOAT32)


def test_one_and_two_threads_give_the_same_bytes():
    from planish.backends.tvm.threads import set_threads

    compiled, x, results = compiled_example("mobilenet"), image(EXAMPLES["mobilenet"][1]), []
    for threads in (1, 2):
        set_threads(threads)
        results.append(compiled(x)[0].numpy().tobytes())
    assert results[0] == results[1]


def test_results_are_not_overwritten_by_the_next_call():
    compiled, x = compiled_example("resnet"), image(EXAMPLES["resnet"][1])
    first = compiled(x)[0]
    kept = first.clone()
    compiled(x + 1)
    assert torch.equal(first, kept)


def test_a_slice_of_a_batch_starts_anywhere_in_memory():
    make, shape = EXAMPLES["resnet"]
    model, compiled = make(), compiled_example("resnet")
    batch = image((2 * 3 * 16 * 16 + 1,))[0, 1:].view(2, *shape)
    assert all(x.data_ptr() % 64 for x in batch.split(1))
    for x in batch.split(1):
        torch.testing.assert_close(compiled(x)[0], model(x), **FLOAT32)


def test_an_index_out_of_range_gives_nan_and_no_other_row_changes():
    table = nn.Sequential(nn.Embedding(10, 20), nn.Linear(20, 3)).eval()
    tokens = torch.arange(10).reshape(2, 5)
    graph = fix_batch(capture(table, (tokens,)), 2)
    compiled = compile_model(to_relax(graph, Target.get("local")), Target.get("local"))
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens)[0], table(tokens), **FLOAT32)
    wrong = tokens.clone()
    wrong[0, 1], wrong[1, 0], wrong[1, 4] = 10, -1, 10**12
    found = compiled(wrong)[0]
    assert found.isnan().all(-1).tolist() == (wrong != tokens).tolist()
    assert torch.equal(found[wrong == tokens], compiled(tokens)[0][wrong == tokens])


def test_batch_norms_that_were_not_folded_are_computed():
    make, shape = EXAMPLES["vgg"]
    model, x = make(), image(shape)
    relax_model = to_relax(fix_batch(example_graph("vgg"), 1), Target.get("local"))
    assert relax_model.others["batch_norm"] == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    compiled = compile_model(relax_model, Target.get("local"))
    torch.testing.assert_close(compiled(x)[0].double(), model.double()(x.double()), **FLOAT32)


def test_an_op_that_tvm_lacks_is_named_with_its_source_line():
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.fft2(x).abs()

    graph = capture(Spectrum(), (image((3, 8, 8)),))
    assert [node.name for node in unsupported(graph)] == ["fft_fft2"]
    with pytest.raises(BuildError, match=r"'aten\.fft_fft2\.default' \(test_relax\.py:\d+\)"):
        to_relax(graph, Target.get("local"))
