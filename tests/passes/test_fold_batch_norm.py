from dataclasses import dataclass

import pytest
import torch
from torch import nn

import planish
from planish.ir import rewrite
from planish.ir.errors import PassError, VerifyError
from planish.ir.verify import verify
from planish.passes.base import Fuel
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.pipeline import Pipeline


def awake(model):
    """Statistics and scales far from zero and one, so that a fold with a mistake shows."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3.0)
            if module.affine:
                nn.init.uniform_(module.weight, -2.0, 2.0)
                nn.init.normal_(module.bias)
    return model.eval()


def without_shift(norm):
    """A batch norm that maps zero to zero."""
    nn.init.zeros_(norm.running_mean)
    nn.init.zeros_(norm.bias)
    return norm


def fold(model, x, fuel=None):
    """The pass through the pipeline in float64, checked against PyTorch's own float64 result."""
    model = model.double()
    graph = planish.capture(model, x.double())
    outcome = Pipeline([FoldBatchNorm()]).run(graph, planish.Context(fuel=Fuel(fuel)))
    # The folded product adds in another order: 1e-12 of values around 1 is float64 rounding.
    torch.testing.assert_close(outcome.graph(x.double()), model(x.double()), rtol=1e-12, atol=1e-12)
    return outcome.graph, outcome.steps[0].result


AFTER = {
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1, groups=2), nn.BatchNorm1d(6), (2, 4, 9)),
    "conv2d": (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), (2, 3, 9, 9)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12), (2, 6, 7, 7)),
    "conv3d": (nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4, affine=False), (2, 2, 5, 5, 5)),
    "same": (nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), (2, 3, 6, 6)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 5)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed grouped": (nn.ConvTranspose2d(6, 9, 3, padding=1, groups=3), nn.BatchNorm2d(9), (2, 6, 5, 5)),
    "transposed3d": (nn.ConvTranspose3d(2, 4, 2, groups=2), nn.BatchNorm3d(4), (2, 2, 3, 3, 3)),
    "linear": (nn.Linear(5, 7), nn.BatchNorm1d(7), (4, 5)),
    "linear without bias": (nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7, eps=0.1), (4, 5)),
}


@pytest.mark.parametrize("case", AFTER)
def test_a_norm_after_folds(case):
    product, norm, shape = AFTER[case]
    graph, result = fold(awake(nn.Sequential(product, norm, nn.ReLU())), torch.randn(*shape))
    assert result.changed == 1
    assert not result.skipped
    assert not graph.calls("batch_norm")
    assert graph.properties == {"no-batch-norm"}
    assert set(graph.weights) == {"0.weight", "0.bias"}


BEFORE = {
    "conv2d": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
    "conv1d without bias": (nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3, bias=False, padding="valid"), (2, 4, 6)),
    "linear": (nn.BatchNorm1d(5), nn.Linear(5, 3), (4, 5)),
    "padded, no shift": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1), (2, 4, 6, 6)),
    "transposed, no shift": (nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
}


@pytest.mark.parametrize("case", BEFORE)
def test_a_norm_before_folds(case):
    norm, product, shape = BEFORE[case]
    model = awake(nn.Sequential(norm, product))
    if "no shift" in case:
        without_shift(norm)
    graph, result = fold(model, torch.randn(*shape))
    assert result.changed == 1
    assert not graph.calls("batch_norm")


def test_chains_fold_and_a_second_run_changes_nothing():
    model = awake(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    )
    graph, result = fold(model, torch.randn(2, 3, 6, 6))
    assert result.changed == 3
    text = str(graph)
    assert Pipeline([FoldBatchNorm()]).run(graph).steps[0].result.changed == 0
    assert str(graph) == text


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class SharedWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)) + torch.relu(nn.functional.conv2d(x, self.conv.weight, padding=1))


class ComputedWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(nn.functional.conv2d(x, self.conv.weight * 2))


class OverSequence(nn.Module):
    """The linear's features are the last dim, the norm's channels are dim 1."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(5, 6), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(self.fc(x))


DECLINES = {
    "other users": (TwoReaders(), (2, 3, 6, 6), "'conv2d' has other users"),
    "shared": (SharedWeight(), (2, 4, 6, 6), "its weight 'conv.weight' is shared with 'conv2d_1'"),
    "computed": (ComputedWeight(), (2, 3, 6, 6), "the weight of 'conv2d' is computed"),
    "another dim": (OverSequence(), (2, 3, 5), "it runs over dim 1 of 3, which are not the channels of 'linear'"),
    "no statistics": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        (2, 3, 6, 6),
        "it has no running statistics",
    ),
    "padding": (
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
        (2, 3, 6, 6),
        "its shift is not zero and 'conv2d' pads",
    ),
    "same padding": (
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding="same")),
        (2, 3, 6, 6),
        "its shift is not zero and 'conv2d' pads",
    ),
    "transposed border": (
        nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 3)),
        (2, 3, 6, 6),
        "is a transposed conv, whose border would differ",
    ),
    "alone": (
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()),
        (2, 3, 6, 6),
        "no conv or linear stands directly",
    ),
}


@pytest.mark.parametrize("case", DECLINES)
def test_it_declines_and_says_why(case):
    model, shape, why = DECLINES[case]
    graph, result = fold(awake(model), torch.randn(*shape))
    assert result.changed == 0
    assert len(result.skipped) == 1
    assert why in result.skipped[0].why
    assert "aten.batch_norm.default" in result.skipped[0].where
    assert result.withheld == {"no-batch-norm"}
    assert graph.properties == set()


def test_it_declines_in_training_mode():
    graph = planish.capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6)).train()
    result = FoldBatchNorm().run(graph, planish.Context())
    assert [skip.why for skip in result.skipped] == ["it is in training mode"]


def test_it_declines_a_decomposed_batch_norm():
    model = awake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    program = torch.export.export(model, (torch.randn(2, 3, 6, 6),)).run_decompositions()
    result = Pipeline([FoldBatchNorm()]).run(planish.capture(program)).steps[0].result
    assert "capture the model before decomposition" in result.skipped[0].why
    assert result.withheld


def test_requires_grad_is_kept():
    model = awake(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    )
    model[0].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    graph, _ = fold(model, torch.randn(2, 3, 6, 6))
    grads = {name: parameter.requires_grad for name, parameter in graph.parameters.items()}
    # The new 0.bias stands for the norm's learned bias; 2.bias keeps its own setting.
    assert grads == {"0.weight": False, "0.bias": True, "2.weight": True, "2.bias": True}


def test_ties_elsewhere_do_not_matter():
    class TiedNorms(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(self.b(torch.relu(self.bn(self.a(x)))))

    _, result = fold(awake(TiedNorms()), torch.randn(2, 4, 3, 3))
    assert result.changed == 2


def test_fuel_stops_between_sites():
    model = awake(nn.Sequential(*[m for _ in range(3) for m in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))]))
    for fuel in range(4):
        graph, result = fold(model, torch.randn(2, 4, 3, 3), fuel=fuel)
        assert result.changed == fuel
        assert len(graph.calls("batch_norm")) == 3 - fuel
        assert ("no-batch-norm" in graph.properties) == (fuel == 3)


def test_float32_stays_within_rounding_of_the_float64_model():
    model = awake(nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()))
    x = torch.randn(2, 8, 10, 10)
    folded = Pipeline.parse("fold-batch-norm").run(planish.capture(model, x)).graph(x)
    unfolded_error = (model(x).double() - model.double()(x.double())).abs().max()
    folded_error = (folded.double() - model(x.double())).abs().max()
    # Both are float32 sums of 72 products; folding once in float64 must not cost more than a few roundings.
    assert folded_error < 4 * unfolded_error + 1e-6


def test_half_precision_weights_keep_their_dtype():
    model = awake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).bfloat16()
    graph = Pipeline.parse("fold-batch-norm").run(planish.capture(model, torch.randn(2, 3, 6, 6).bfloat16())).graph
    assert {t.dtype for t in graph.weights.values()} == {torch.bfloat16}
    verify(graph)


def test_a_pass_that_needs_folded_norms_hears_why_they_are_not():
    @dataclass(frozen=True)
    class Needy(planish.Pass):
        name = "needs-folded-norms"
        requires = frozenset({"no-batch-norm"})

        def run(self, graph, ctx):
            return planish.Result(0)

    graph = planish.capture(awake(TwoReaders()), torch.randn(2, 3, 6, 6))
    with pytest.raises(PassError, match=r"'no-batch-norm', which 'fold-batch-norm' could not give; .* has other users"):
        Pipeline([FoldBatchNorm(), Needy()]).run(graph)


def test_a_wrong_fold_is_caught_by_the_verifier():
    graph = planish.capture(awake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 3, 6, 6))
    FoldBatchNorm().run(graph, planish.Context())
    verify(graph)
    rewrite.set_weight(graph, "0.weight", torch.full((4, 3, 3, 3), float("nan")))
    with pytest.raises(VerifyError, match=r"weight '0\.weight' holds NaN"):
        verify(graph)
