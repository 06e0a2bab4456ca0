"""Every criterion against a slow or foreign computation of what its paper says, in float64.

Tolerances: 1e-12 relative where both sides sum the same float64 products in another order.
"""

import numpy as np
import pytest
import torch
from example_graphs import example_graph
from scipy.spatial.distance import cdist
from score_cases import MODELS, Case, make_batches, make_case
from torch import nn
from torch.func import functional_call

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.passes.base import Context
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph
from planish.passes.prune.rematch import pieces_of
from planish.passes.prune.score.criteria import CRITERIA, NEEDS
from planish.passes.prune.score.evidence import gather
from planish.passes.prune.score.gradients import PROBES
from planish.passes.prune.score.importance import importance

CLOSE = {"rtol": 1e-12, "atol": 1e-14}
loss_function = nn.functional.cross_entropy


def entries(case: Case, name: str, group: int) -> torch.Tensor:
    """The entries of a weight that a group owns, in one row."""
    return case.graph.weight(name).detach()[case.masks(group)[name].bool()]


@pytest.mark.parametrize(
    ("criterion", "norm"), [("l1", lambda w: w.abs().mean()), ("l2", lambda w: w.square().mean().sqrt())]
)
def test_magnitudes_are_relative_to_the_layer_and_averaged_over_weights(criterion, norm):
    case = make_case("mlp")
    expected = np.zeros(case.groups.count)
    for family, names in zip(case.groups.families, (("0.weight", "2.weight"), ("2.weight", "4.weight")), strict=True):
        for name, position in zip(names, (0, 1), strict=True):
            weight = case.graph.weight(name).detach()
            scores = np.array([float(norm(row)) for row in weight.movedim(position, 0)])
            expected[family.groups] += scores / scores.mean() / 2
    np.testing.assert_allclose(importance(case.groups, criterion), expected, **CLOSE)


def test_a_vector_speaks_for_groups_without_a_matrix():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.last = nn.Parameter(torch.tensor([1.0, -4.0, 2.0, 1.0])), nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return self.last(torch.tanh(x * self.shift))

    model = Both()
    groups = Groups(IndexGraph(capture(model, torch.randn(2, 1))))
    assert groups.count == 4
    columns = model.last.weight.detach().double().abs().mean(0).numpy()
    np.testing.assert_allclose(importance(groups, "l1"), columns / columns.mean(), **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_taylor_is_the_slope_of_the_loss_as_a_group_is_scaled_away(name):
    case, batches = make_case(name), make_batches(name, 3)
    evidence = gather(case.graph, Context(data=batches), "taylor", "test")
    scores = importance(case.groups, "taylor", evidence, "none")
    for group in range(case.groups.count):
        alpha, masks = torch.ones((), dtype=torch.float64, requires_grad=True), case.masks(group)
        parameters = dict(case.model.named_parameters())
        scaled = {n: (1 + (alpha - 1) * masks[n]) * parameters[n].detach() for n in parameters}
        total = sum(loss_function(functional_call(case.model, scaled, (x,)), y) for x, y in batches) / len(batches)
        (slope,) = torch.autograd.grad(total, alpha)
        assert scores[group] == pytest.approx(abs(float(slope)), rel=1e-9, abs=1e-14)  # sums with cancellation


@pytest.mark.parametrize("name", MODELS)
def test_fisher_is_half_the_mean_square_of_gradient_times_weight(name):
    case, batches = make_case(name), make_batches(name, 3)
    evidence = gather(case.graph, Context(data=batches), "fisher", "test")
    expected = np.zeros(case.groups.count)
    for x, y in batches:
        case.model.zero_grad()
        loss_function(case.model(x), y).backward()
        for group in range(case.groups.count):
            for parameter, mask in case.masks(group).items():
                weight = case.model.get_parameter(parameter)
                expected[group] += float((mask * (weight.detach() * weight.grad).square()).sum()) / 2 / len(batches)
    np.testing.assert_allclose(importance(case.groups, "fisher", evidence, "none"), expected, **CLOSE)


def exact_hessian(case: Case, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(all parameters in one vector, the whole Hessian of the loss by them)."""
    parameters = dict(case.model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]
    flat = torch.cat([p.detach().flatten() for p in parameters.values()])

    def loss(vector):
        parts = zip(parameters, vector.split(sizes), strict=True)
        return loss_function(functional_call(case.model, {n: v.view_as(parameters[n]) for n, v in parts}, (x,)), y)

    return flat, torch.func.hessian(loss)(flat)


def test_the_curvature_is_estimated_without_bias():
    """z (A z) has the diagonal of A as its mean and the squares of the rest of the row as its variance (Bekas, 2007).

    Here A is the Hessian with every row and column multiplied by its weight. The estimate must lie within 5 of its own
    standard deviations: 1 in 10^6 per weight would not by chance, and the seed is fixed.
    """
    case, ((x, y),) = make_case("mlp"), make_batches("mlp", 1)
    repeats = 50
    evidence = gather(case.graph, Context(data=[(x, y)] * repeats), "hessian", "test")
    flat, hessian = exact_hessian(case, x, y)
    scaled = flat[:, None] * hessian * flat
    rest = (scaled - scaled.diagonal().diag()).square()
    estimate = torch.cat([t.flatten() for t in evidence.of("curvature").values()])
    deviation = (rest.sum(1) / (repeats * PROBES)).sqrt()
    assert bool(((estimate - scaled.diagonal()).abs() <= 5 * deviation + 1e-12).all())
    scores, exact = importance(case.groups, "hessian", evidence, "none"), []
    for group in range(case.groups.count):
        mask = torch.cat([m.flatten() for m in case.masks(group).values()])
        assert scores[group] == pytest.approx(max(float((mask * estimate).sum()) / 2, 0.0), rel=1e-9, abs=1e-15)
        exact.append(float((mask * scaled.diagonal()).sum()) / 2)
    assert np.corrcoef(scores, np.maximum(exact, 0))[0, 1] > 0.95
    assert (scores > 0).sum() >= 5


def test_a_diagonal_hessian_is_found_exactly():
    """With a single random sign per parameter z_i A_ii z_i = A_ii, so one probe is enough."""

    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, -4.0]))

        def forward(self, x):
            return x * self.weight.square()

    x = torch.tensor([[1.0, 2.0, 0.5, -1.0]])
    graph = capture(Squares(), torch.cat([x, x]))
    ctx = Context(data=[(x, torch.zeros(1))], loss=lambda out, labels: out.sum())
    found = gather(graph, ctx, "hessian", "test").of("curvature")["weight"]
    torch.testing.assert_close(found, torch.tensor([2.0, 16.0, 9.0, -32.0]).double(), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_geometric_median_is_the_mean_distance_to_the_other_slices(name):
    case = make_case(name)
    expected, held = np.zeros(case.groups.count), np.zeros(case.groups.count)

    def compare(family, tensor, number):
        """One place of the family: the slices of `tensor` along its first dim that each group owns."""
        rows = np.stack([tensor.flatten(1).numpy()[number == group].ravel() for group in family.groups])
        if rows.size:
            mean = cdist(rows, rows).sum(1) / (len(rows) - 1)
            expected[family.groups] += mean / mean.mean()
            held[family.groups] += 1

    for family in case.groups.families:
        for weight, position, dim in case.groups.rows:
            tensor = case.graph.weight(weight).detach()
            if tensor.ndim > 1:
                compare(family, tensor.movedim(position, 0), case.groups.number[dim])
        for weight, blocks in case.groups.index.blocked.items():
            tensor = case.graph.weight(weight).detach().unflatten(0, (len(blocks), -1)).movedim(2, 1).flatten(0, 1)
            compare(family, tensor, case.groups.number[blocks].ravel())
    # A product of matrices loses half of the digits of the smallest distances.
    np.testing.assert_allclose(importance(case.groups, "geometric-median"), expected / held, rtol=1e-9)


def test_lamp_is_the_share_of_the_energy_left():
    case = make_case("mlp")
    expected = np.zeros(case.groups.count)
    for family, names in zip(case.groups.families, (("0.weight", "2.weight"), ("2.weight", "4.weight")), strict=True):
        for name, position in zip(names, (0, 1), strict=True):
            energy = [float(row.square().sum()) for row in case.graph.weight(name).detach().movedim(position, 0)]
            expected[family.groups] += [e / sum(other for other in energy if other >= e) / 2 for e in energy]
    np.testing.assert_allclose(importance(case.groups, "lamp", normalizer="none"), expected, **CLOSE)


def test_batch_norm_scale():
    case = make_case("grouped")
    (family,) = [f for f in case.groups.families if f.layer == "0"]
    scale = case.model[1].weight.detach().abs().numpy()
    number = case.groups.number[case.groups.index.channels["0.weight"]]
    expected = [scale[number == group].mean() for group in family.groups]
    scores = importance(case.groups, "batch-norm")
    np.testing.assert_allclose(scores[family.groups], expected / np.mean(expected), **CLOSE)
    others = np.setdiff1d(np.arange(case.groups.count), family.groups)
    assert np.array_equal(scores[others], importance(case.groups, "l1")[others])  # no batch norm scales them


@pytest.mark.parametrize(("criterion", "position"), [("activation", 2), ("apoz", 2)])
def test_activations_are_read_after_batch_norm_and_relu(criterion, position):
    case, batches = make_case("grouped"), make_batches("grouped", 3)
    unlabelled = [x for x, _ in batches]
    scores = importance(case.groups, criterion, gather(case.graph, Context(data=unlabelled), criterion, "test"), "max")
    with torch.no_grad():
        seen = torch.cat([case.model[: position + 1](x) for x in unlabelled]).movedim(1, 0).flatten(1)
    per_channel = seen.abs().mean(1) if criterion == "activation" else (seen != 0).double().mean(1)
    (family,) = [f for f in case.groups.families if f.layer == "0"]
    number = case.groups.number[case.groups.index.channels["0.weight"]]
    expected = np.array([per_channel.numpy()[number == group].mean() for group in family.groups])
    np.testing.assert_allclose(scores[family.groups], expected / expected.max(), **CLOSE)
    assert 0 < expected.min() < expected.max()


def test_a_shortcut_into_a_relu_is_passed():
    graph = example_graph("resnet")
    evidence = gather(graph, Context(data=torch.randn(4, 3, 16, 16)), "apoz", "test")
    zeros = evidence.of("zeros")
    assert np.array_equal(zeros["layer2.0.conv2.0.weight"], zeros["layer2.0.shortcut.0.weight"])
    assert all(values.any() for layer, values in zeros.items() if layer != "head.weight")


def test_a_layer_without_zeros_is_ranked_by_magnitude():
    case, batches = make_case("mlp"), make_batches("mlp", 2)
    scores = importance(case.groups, "apoz", gather(case.graph, Context(data=batches), "apoz", "test"))
    tanh, relu = case.groups.families
    magnitudes = importance(case.groups, "l1")
    assert np.array_equal(scores[tanh.groups], magnitudes[tanh.groups])
    assert not np.array_equal(scores[relu.groups], magnitudes[relu.groups])


def test_random_is_even_and_follows_the_seed():
    groups = Groups(IndexGraph(example_graph("efficientnet")))
    graph = groups.index.graph
    one, again, other = (
        importance(groups, "random", gather(graph, Context(seed=seed), "random", "test"), "none") for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.25  # 300 independent pairs: 4 standard deviations
    assert 0 <= one.min() < 0.05 < 0.95 < one.max() < 1


def renumbered(groups: Groups, seed: int) -> tuple[Groups, np.ndarray]:
    order = np.random.default_rng(seed).permutation(groups.count)
    return Groups(groups.index, np.append(order, -1)[groups.number]), order


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_order_of_groups_changes_no_bit(criterion):
    case, batches = make_case("grouped"), make_batches("grouped", 2)
    evidence = gather(case.graph, Context(data=batches), criterion, "test")
    shuffled, order = renumbered(case.groups, 3)
    for normalizer in ("mean", "standard"):
        expected = importance(case.groups, criterion, evidence, normalizer)
        assert np.array_equal(importance(shuffled, criterion, evidence, normalizer)[order], expected)


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if not NEEDS[c] and c != "random"])
def test_ties_stay_ties(criterion):
    graph = example_graph("resnet")
    groups = Groups(IndexGraph(graph))
    with torch.no_grad():
        for name, position, dim in groups.rows:
            number = groups.number[dim]
            for family in groups.families:
                source, *copies = (np.flatnonzero(number == g) for g in family.groups[[5, 2, 11]])
                weight = graph.weight(name).movedim(position, 0)
                for copy in copies:
                    weight[copy] = weight[source]
    scores = importance(groups, criterion)
    for family in groups.families:
        own = scores[family.groups]
        assert own[2] == own[5] == own[11]
        assert len(np.unique(own)) == len(own) - 2


@pytest.mark.parametrize("criterion", CRITERIA)
def test_pieces_are_scored_like_groups(criterion):
    """Each piece is an index of its own here, so that its score can be told from plain slices."""
    case, batches = make_case("grouped"), make_batches("grouped", 2)
    pieces = pieces_of(case.groups)
    evidence = gather(case.graph, Context(data=batches), criterion, "test")
    scores = importance(pieces, criterion, evidence)
    held = np.unique(np.concatenate([pieces.number[dim] for _, _, dim in pieces.rows]))
    assert len(held) == 20 > case.groups.count  # the others hold the block's own input digits, and no weight
    assert np.isfinite(scores).all()
    assert all(scores[g] == 0 for g in range(pieces.count) if g not in held) or criterion == "random"
    if criterion == "l1":
        first, middle = case.model[0].weight.detach().abs(), case.model[3].weight.detach().abs()
        produced = first.mean((1, 2, 3)).numpy()
        consumed = torch.cat([part.mean((0, 2, 3)) for part in middle.split(4)]).numpy()
        number = pieces.number[case.groups.index.channels["0.weight"]]
        expected = (produced / produced.mean() + consumed / consumed.mean()) / 2
        np.testing.assert_allclose(scores[number], expected, **CLOSE)


def test_batch_norm_without_any():
    with pytest.raises(UsageError) as caught:
        importance(make_case("mlp").groups, "batch-norm")
    assert str(caught.value) == (
        "importance 'batch-norm': the model has no batch norm with a scale; put prune-channels before fold-batch-norm, "
        "or choose another importance, such as l1."
    )


def test_what_a_criterion_needs():
    labelled = {name for name, needs in NEEDS.items() if "labels" in needs}
    assert labelled == {"taylor", "fisher", "hessian"}
    assert {name for name, needs in NEEDS.items() if "data" in needs} == labelled | {"activation", "apoz"}
