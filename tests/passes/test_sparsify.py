"""sparsify: the right weights go, by count and by block; zeros stay zero afterwards; it declines with reasons."""

import json
import re
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from example_graphs import made_once
from models import EXAMPLES
from torch import nn
from torch.nn.utils import prune

import planish
from planish.ir.capture import capture
from planish.ir.errors import UsageError, VerifyError
from planish.ir.graph import Graph
from planish.passes.base import Context, Fuel, wrap
from planish.passes.pipeline import Pipeline
from planish.passes.sparse_choice import IMPORTANCE, lowest
from planish.passes.sparsify import Sparsify, masks


def mlp():
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.LayerNorm(24), nn.Linear(24, 8))
    nn.init.ones_(model[2].bias)
    return model


@cache
def resnet():
    torch.manual_seed(0)
    return capture(EXAMPLES["resnet"][0](), torch.randn(2, 3, 32, 32))


def sparsified(model, x=None, ctx=None, **options):
    """(new graph, result) of a model with its input, or of a graph, through a pipeline, which verifies."""
    graph = model if isinstance(model, Graph) else capture(model, x)
    outcome = Pipeline([Sparsify(**options)]).run(graph, ctx)
    return outcome.graph, outcome.steps[0].result


def zeros(graph):
    return {name: int((weight == 0).sum()) for name, weight in graph.weights.items() if (weight == 0).any()}


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.99])
def test_each_layer_loses_its_smallest_weights(sparsity):
    """PyTorch's own l1_unstructured keeps the same weights, layer by layer."""
    model, x = mlp(), torch.randn(2, 16)
    graph, result = sparsified(model, x, sparsity=sparsity)
    for name in ("0", "3"):
        layer = model.get_submodule(name)
        prune.l1_unstructured(layer, "weight", amount=sparsity)
        assert torch.equal(graph.weight(f"{name}.weight"), layer.weight)
    assert result.changed == 2
    assert set(zeros(graph)) == {"0.weight", "3.weight"}
    assert graph.properties == {"sparse"}
    # the same products in the same order, with the same zeros: equal up to float32 rounding of sums of 24 terms
    torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1e-6)


def test_globally_the_smallest_of_all_go():
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(0.1)
    graph, _ = sparsified(model, torch.randn(2, 16), sparsity=0.5, scope="global")
    prune.global_unstructured([(model[0], "weight"), (model[3], "weight")], prune.L1Unstructured, amount=0.5)
    for name in ("0", "3"):
        assert torch.equal(graph.weight(f"{name}.weight"), model.get_submodule(name).weight)


def test_globally_no_layer_is_emptied():
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    graph, _ = sparsified(model, torch.randn(2, 16), sparsity=0.9, scope="global")
    (left,) = torch.nonzero(graph.weight("0.weight").flatten(), as_tuple=True)
    assert left.tolist() == [int(model[0].weight.abs().argmax())]
    assert sum(zeros(graph).values()) == round(0.9 * (16 * 24 + 24 * 8))


def test_lamp_is_the_share_in_what_remains():
    """Every score against its definition, in plain loops."""
    weights = np.abs(np.random.default_rng(0).normal(size=40))
    expected = [w**2 / sum(v**2 for v in weights if v >= w) for w in weights]
    # float64 sums in another order: 1e-12 is rounding
    np.testing.assert_allclose(IMPORTANCE["lamp"](weights, np.random.default_rng(0)), expected, rtol=1e-12)


def blocks_along(weight, dim, size):
    """Every block of `size` neighbours along a dim, one by one."""
    others = [range(extent) for d, extent in enumerate(weight.shape) if d != dim]
    for place in product(*others):
        row = weight[(*place[:dim], slice(None), *place[dim:])]
        yield from (row[start : start + size] for start in range(0, len(row), size))


LAYERS = {
    "linear": (lambda: nn.Linear(8, 6), (8,), 1),
    "conv1d": (lambda: nn.Conv1d(8, 6, 3), (8, 9), 1),
    "conv2d": (lambda: nn.Conv2d(8, 6, 3), (8, 5, 5), 1),
    "grouped conv": (lambda: nn.Conv2d(16, 6, 3, groups=2), (16, 5, 5), 1),
    "transposed conv": (lambda: nn.ConvTranspose2d(8, 6, 3), (8, 5, 5), 0),
    "grouped transposed conv": (lambda: nn.ConvTranspose2d(16, 6, 3, groups=2), (16, 5, 5), 0),
}


@pytest.mark.parametrize(("kept", "block"), [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("layer", LAYERS)
def test_of_every_block_the_largest_stay(layer, kept, block):
    make, shape, dim = LAYERS[layer]
    model = make()
    graph, result = sparsified(model, torch.randn(2, *shape), pattern=f"{kept}:{block}")
    before, after = (m.detach().numpy() for m in (model.weight, graph.weight("weight")))
    assert result.skipped == ()
    count = 0
    for old, new in zip(blocks_along(before, dim, block), blocks_along(after, dim, block), strict=True):
        largest = sorted(range(block), key=lambda i: -abs(old[i]))[:kept]
        assert np.flatnonzero(new).tolist() == sorted(largest)
        assert (new[largest] == old[largest]).all()
        count += 1
    assert count == before.size // block


def test_matrix_products_and_recurrent_weights():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.right, self.left = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(3, 12))
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x):
            return torch.matmul(self.left, self.lstm(torch.matmul(x, self.right))[0])

    graph, result = sparsified(Model(), torch.randn(2, 12, 8), pattern="2:4")
    assert result.skipped == ()
    for name, dim in (("right", 0), ("left", 1), ("lstm.weight_ih_l0", 1), ("lstm.weight_hh_l0", 1)):
        weight = graph.weight(name).detach().numpy()
        assert all((block != 0).sum() == 2 for block in blocks_along(weight, dim, 4))
    assert zeros(graph).keys() == {"right", "left", "lstm.weight_ih_l0", "lstm.weight_hh_l0"}


def test_ties_go_by_index():
    model = nn.Linear(4, 2)
    nn.init.constant_(model.weight, 0.5)
    graph, _ = sparsified(model, torch.randn(2, 4), sparsity=0.375)
    assert graph.weight("weight").tolist() == [[0, 0, 0, 0.5], [0.5, 0.5, 0.5, 0.5]]
    graph, _ = sparsified(model, torch.randn(2, 4), pattern="2:4")
    assert graph.weight("weight").tolist() == [[0, 0, 0.5, 0.5]] * 2


@pytest.mark.parametrize("count", [0, 1, 7, 19, 20])
def test_lowest_is_the_start_of_a_stable_sort(count):
    scores = np.random.default_rng(count).integers(0, 4, 20).astype(float)
    assert np.flatnonzero(lowest(scores, count)).tolist() == sorted(np.argsort(scores, kind="stable")[:count].tolist())


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("options", [{"sparsity": 0.6}, {"sparsity": 0.6, "scope": "global"}, {"pattern": "1:4"}])
def test_a_second_run_changes_nothing(importance, options):
    entry = Sparsify(importance=importance, seed=3, **options)
    first = Pipeline([entry]).run(resnet())
    again = Pipeline([entry]).run(first.graph)
    assert first.steps[0].result.changed > 0
    assert again.steps[0].result.changed == 0
    assert all(torch.equal(first.graph.weight(n), w) for n, w in again.graph.weights.items())
    assert again.graph.properties == {"sparse"}


def test_random_is_a_matter_of_the_seed():
    model, x = mlp(), torch.randn(2, 16)
    graphs = [sparsified(model, x, sparsity=0.5, importance="random", seed=seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(graphs[0].weight("0.weight"), graphs[1].weight("0.weight"))
    assert not torch.equal(graphs[0].weight("0.weight"), graphs[2].weight("0.weight"))
    assert zeros(graphs[0]) == zeros(graphs[2]) == {"0.weight": 192, "3.weight": 96}


def test_tied_and_frozen_weights_stay_so():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.a.weight.requires_grad_(False)

        def forward(self, x):
            return self.b(self.a(x))

    graph, result = sparsified(Model(), torch.randn(2, 8), sparsity=0.5)
    assert graph.weight("a.weight") is graph.weight("b.weight")
    assert not graph.weight("a.weight").requires_grad
    assert [layer["zeros"] for layer in result.details["layers"]] == [[0, 32]]


def test_details_count_zeros_before_and_after():
    model = mlp()
    with torch.no_grad():
        model[0].weight[0].zero_()
    _, result = sparsified(model, torch.randn(2, 16), sparsity=0.5)
    assert result.details == {
        "weights": 576,
        "zeros": [16, 288],
        "share_of_all_parameters": 288 / (16 * 24 + 24 + 48 + 24 * 8 + 8),
        "layers": [
            {"layer": "0", "weights": 384, "zeros": [16, 192]},
            {"layer": "3", "weights": 192, "zeros": [0, 96]},
        ],
    }
    assert json.loads(json.dumps(result.details)) == result.details


class Declines(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.stem, self.head = nn.Embedding(10, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.position = nn.Parameter(torch.randn(3, 8))
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, tokens):
        x = self.table(tokens) + self.position
        return self.head(self.stem(torch.einsum("btf,fg->btg", x, self.mix)))


@made_once
def declines() -> Graph:
    return capture(Declines(), torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "where", "why"),
    [
        ({"keep": ("stem",)}, "stem", "it is listed in 'keep'"),
        ({"only": ("stem",)}, "head", "it is not in 'only'"),
        ({"keep_last": True}, "head", "it is a last layer"),
        ({}, "table", "'aten.embedding.default' .* reads it, which is no product with a weight"),
        ({}, "position", "'aten.add.Tensor' .* reads it, which is no product with a weight"),
        ({"pattern": "2:4"}, "head", "each output sums over 6 inputs, which blocks of 4 do not divide"),
        ({"pattern": "2:4"}, "mix", "which of its dims its products sum over is not known"),
        ({"sparsity": 0.04}, "head", "0.04 of its 12 weights is less than one that goes"),
    ],
)
def test_it_declines(options, where, why):
    options = {"sparsity": 0.5, **options} if "pattern" not in options else options
    graph, result = sparsified(declines(), **options)
    (skip,) = [skip for skip in result.skipped if skip.where == where]
    assert re.fullmatch(why, skip.why)
    assert f"{where}.weight" not in zeros(graph)
    assert where not in zeros(graph)


def test_first_layers_stay():
    outcome = Pipeline([Sparsify(sparsity=0.5, keep_first=True)]).run(resnet())
    graph, result = outcome.graph, outcome.steps[0].result
    assert [(skip.where, skip.why) for skip in result.skipped] == [("stem.0", "it is a first layer")]
    assert "stem.0.weight" not in zeros(graph)
    # an embedding stands before the first product of a language model: that one is no first layer
    _, result = sparsified(declines(), sparsity=0.5, keep_first=True)
    assert "it is a first layer" not in [skip.why for skip in result.skipped]


def test_nothing_to_do_withholds_the_property():
    graph, result = sparsified(nn.Sequential(nn.LayerNorm(4)), torch.randn(2, 4), sparsity=0.5)
    assert (result.changed, graph.properties) == (0, set())


def test_fuel_stops_it():
    graph, result = sparsified(mlp(), torch.randn(2, 16), Context(fuel=Fuel(1)), sparsity=0.5)
    assert result.changed == 1
    assert zeros(graph) == {"0.weight": 192}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither 'sparsity' nor 'pattern' is given; expected exactly one of 'sparsity' and 'pattern'"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "both are given; expected exactly one"),
        ({"sparsity": 1.0}, "sparsity is 1; expected the share of zeros, above 0 and below 1"),
        ({"sparsity": 0.0}, "sparsity is 0; expected"),
        ({"sparsity": float("nan")}, "sparsity is nan; expected"),
        ({"pattern": "4:2"}, "pattern is '4:2'; expected how many of a block stay, such as '2:4' or '4:8'"),
        ({"pattern": "two of four"}, "pattern is 'two of four'"),
        ({"pattern": "2:4", "scope": "global"}, "scope is global; a pattern holds in every block of every layer"),
        ({"sparsity": 0.5, "scope": "block"}, "unknown scope 'block'; expected layer or global"),
        ({"sparsity": 0.5, "importance": "magnitud"}, "unknown importance 'magnitud'; did you mean 'magnitude'?"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError) as caught:
        Sparsify(**options)
    assert str(caught.value).startswith(f"sparsify: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ("stm",)}, "'stm' in 'keep' matches no weight; did you mean 'stem'?"),
        ({"only": ("stm*",)}, "'stm*' in 'only' matches no weight"),
        ({"only": ("stem", "head"), "keep": ("he*",)}, "'head.weight' is named by 'keep' and by 'only'"),
    ],
)
def test_selectors_without_a_meaning(options, message):
    with pytest.raises(UsageError) as caught:
        sparsified(declines(), sparsity=0.5, **options)
    assert message in str(caught.value)


def test_weights_that_are_not_finite():
    model = mlp()
    with torch.no_grad():
        model[3].weight[0, 0] = float("inf")
    with pytest.raises(UsageError, match=r"weight '3\.weight' holds 1 values that are NaN or infinite"):
        sparsified(model, torch.randn(2, 16), sparsity=0.5)


@pytest.mark.parametrize("text", ["sparsify{sparsity=0.9}", 'sparsify{pattern="2:4", keep=[head], keep-first=true}'])
def test_text_round_trips(text):
    assert str(Pipeline.parse(text)) == text
    assert Pipeline.from_toml(Pipeline.parse(text).toml()) == Pipeline.parse(text)


def test_masks_are_the_zeros_of_sparse_layers():
    model = mlp()
    nn.init.zeros_(model[3].weight)  # as a branch may be initialised: zero as a whole is no mask
    graph = capture(model, torch.randn(2, 16))
    assert masks(graph) == {}
    sparse, _ = sparsified(model, torch.randn(2, 16), sparsity=0.5, only=("0",))
    assert {name: mask.tolist() for name, mask in masks(sparse).items()} == {
        "0.weight": (sparse.weight("0.weight") != 0).tolist()
    }


def test_masks_survive_a_file(tmp_path):
    graph, _ = sparsified(mlp(), torch.randn(2, 16), pattern="2:4")
    graph.save(tmp_path / "graph.planish")
    loaded = planish.Graph.load(tmp_path / "graph.planish")
    assert masks(loaded).keys() == {"0.weight", "3.weight"}
    assert all(torch.equal(mask, masks(loaded)[name]) for name, mask in masks(graph).items())


def test_a_pass_that_fills_zeros_is_caught():
    def nudge(module):
        with torch.no_grad():
            module.get_parameter("0.weight").add_(0.001)

    sparse, _ = sparsified(mlp(), torch.randn(2, 16), sparsity=0.5)
    with pytest.raises(VerifyError, match=r"192 zeros of the sparse weight '0\.weight' are no longer zero"):
        Pipeline([wrap(nudge)]).run(sparse)
    dense = capture(mlp(), torch.randn(2, 16))
    assert Pipeline([wrap(nudge)]).run(dense).graph.properties == set()


def test_folding_and_channel_pruning_keep_zeros():
    """Folding scales rows, a cut takes rows and columns: what was zero and is still there is zero."""
    model, x = EXAMPLES["resnet"][0](), torch.randn(2, 3, 32, 32)
    outcome = Pipeline.parse("sparsify{sparsity=0.7}, fold-batch-norm, prune-channels{ratio=0.25}").run(
        capture(model, x)
    )
    assert "sparse" in outcome.graph.properties
    for name, mask in masks(outcome.graph).items():
        assert 0.4 < 1 - mask.double().mean() < 0.9, name
    assert len(masks(outcome.graph)) == 11
    assert F.mse_loss(outcome.graph(x), model(x)).isfinite()
