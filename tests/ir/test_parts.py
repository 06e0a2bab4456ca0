"""Capture in part: a small detector whose backbone and heads become graphs, and what is refused and why."""

import copy
from functools import cache
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planish
from planish.ir.cost import cost
from planish.ir.errors import CaptureError, UsageError
from planish.ir.graph import Graph
from planish.passes.prune.prune_channels import PruneChannels


class Backbone(nn.Module):
    """Two levels of features, the coarse one scaled up to the fine one's size and added."""

    def __init__(self):
        super().__init__()
        self.out_channels = 8
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.deep = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.fine, self.coarse = nn.Conv2d(16, 8, 1), nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        coarse = self.coarse(self.deep(fine))
        return {"0": self.fine(fine) + F.interpolate(coarse, size=fine.shape[-2:]), "1": coarse}


class Head(nn.Module):
    """A score for every position of every level. It also knows its loss, as detectors' heads do."""

    def __init__(self):
        super().__init__()
        self.conv, self.score = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return torch.cat([self.score(F.relu(self.conv(level))).flatten(1) for level in levels], 1)

    def compute_loss(self, scores: Tensor, target: float) -> Tensor:
        return (scores - target).square().mean()


class Regions(nn.Module):
    """Looks at as many crops as there are good positions: its size depends on data."""

    def __init__(self):
        super().__init__()
        self.box_head = nn.Sequential(nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 6), nn.ReLU())
        self.predictor = nn.Linear(6, 2)

    def forward(self, feature: Tensor, scores: Tensor, width: int, threshold: float) -> list[Tensor]:
        found = []
        for image, row in zip(feature, scores, strict=True):
            places = torch.nonzero(row[: width * (len(row) // width)] > threshold).flatten() % (width - 2)
            crops = [image[:, :3, int(place) : int(place) + 3] for place in places[:7]]
            stacked = torch.stack(crops) if crops else image.new_zeros(0, 8, 3, 3)
            found.append(self.predictor(self.box_head(stacked)))
        return found


class Detector(nn.Module):
    def __init__(self, threshold: float = 0.0):
        super().__init__()
        self.backbone, self.head, self.regions, self.threshold = Backbone(), Head(), Regions(), threshold

    def forward(self, images: list[Tensor], target: float = 0.5) -> list[Tensor] | dict[str, Tensor]:
        height, width = (max(image.shape[d] for image in images) for d in (1, 2))
        batch = torch.stack([F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])
        levels = self.backbone(batch)
        scores = self.head(list(levels.values()))
        found = self.regions(levels["0"], scores, int(levels["0"].shape[-1]), self.threshold)
        if not self.training:
            return found
        return {"scores": self.head.compute_loss(scores, target), "boxes": torch.cat(found).square().mean()}


@pytest.fixture
def detector() -> Detector:
    return detector_of_one_seed()


def detector_of_one_seed() -> Detector:
    generator = torch.Generator().manual_seed(0)
    model = Detector().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator).abs() * 0.1 + 0.05)
        for parameter in model.parameters():
            parameter.mul_(torch.randn(parameter.shape, generator=generator).sign())
    return model


@cache
def _captured() -> planish.Parts:
    return planish.capture_parts(detector_of_one_seed(), (EXAMPLE,))


@pytest.fixture
def parts() -> planish.Parts:
    """The parts of a detector with the weights of `detector`: tests read them, and copy what they change."""
    return _captured()


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


EXAMPLE = images((32, 40), (24, 48))


def pruned(parts: planish.Parts) -> dict[str, Graph]:
    graphs = {}
    for name in ("backbone", "head", "regions.box_head"):
        graphs[name] = parts.graphs[name].copy()
        result = PruneChannels(ratio=0.4).run(graphs[name], planish.Context())
        assert result.changed and result.details["proof_error"] < 1e-9
    return graphs


def test_what_can_be_captured_is_and_the_rest_says_why(parts):
    assert list(parts.graphs) == ["backbone", "head", "regions.box_head", "regions.predictor"]
    assert [spec.shape for spec in parts.graphs["backbone"].inputs] == [("b", 3, "s1", "s2")]
    assert [spec.shape for spec in parts.graphs["regions.box_head"].inputs] == [("b", 8, "s1", "s2")]
    whole, regions = parts.eager
    assert (whole.name, whole.kind) == ("", "Detector") and "cannot be captured" in whole.why
    assert (regions.name, regions.kind) == ("regions", "Regions") and "called with a int" in regions.why
    assert "eager     regions (Regions): capture: it is called with a int" in str(parts)
    assert "captured  backbone: " in str(parts)


@pytest.mark.parametrize("sizes", [((32, 40), (24, 48)), ((64, 56),), ((16, 24), (16, 16), (40, 32))])
def test_the_copy_computes_what_the_original_does_at_other_sizes_and_batches(detector, parts, sizes):
    whole = parts.module_with()
    with torch.no_grad():
        for given, wanted in zip(whole(images(*sizes)), detector(images(*sizes)), strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)  # float32, the same kernels


def test_pruned_parts_detect_and_train_and_the_original_is_untouched(detector):
    before = copy.deepcopy(detector.state_dict())
    parts = planish.capture_parts(detector, (EXAMPLE,))
    thin = parts.module_with(pruned(parts))
    counts = [sum(p.numel() for p in model.parameters()) for model in (thin, detector)]
    assert counts[0] < 0.75 * counts[1]
    found = thin(images((48, 48), (32, 64)))
    assert [tensor.shape[1] for tensor in found] == [2, 2]

    optimizer = torch.optim.SGD(thin.train().parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = cast(Tensor, sum(thin(EXAMPLE, target=1.0).values()))
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in thin.parameters())
    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_training_reaches_methods_settings_and_statistics(detector, parts):
    whole = parts.module_with()
    assert whole.backbone.out_channels == 8
    twin = copy.deepcopy(detector).train()
    wanted, given = twin(EXAMPLE, 0.25), whole.train()(EXAMPLE, 0.25)
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)
    name = "backbone.stem.1.running_mean"
    torch.testing.assert_close(whole.state_dict()[name], twin.state_dict()[name])
    assert not torch.equal(whole.state_dict()[name], detector.state_dict()[name])
    with pytest.raises(AttributeError):
        _ = whole.backbone.no_such_setting


def test_checkpoints_and_deep_copies(detector, parts):
    whole = parts.module_with()
    assert whole.state_dict().keys() == detector.state_dict().keys()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in detector.state_dict().items()}
    twin = copy.deepcopy(whole)
    twin.load_state_dict(zeros)
    assert float(twin.head(list(twin.backbone(torch.ones(2, 3, 16, 16)).values())).abs().max()) == 0
    assert float(whole.head(list(whole.backbone(torch.ones(2, 3, 16, 16)).values())).abs().max()) > 0
    assert float(twin.double().head.conv.weight.abs().max()) == 0 and whole.head.conv.weight.dtype == torch.float32


def test_nothing_found_is_a_batch_of_none(detector):
    detector.threshold = 1e9
    parts = planish.capture_parts(detector, (EXAMPLE,))
    assert [spec.shape for spec in parts.graphs["regions.box_head"].inputs] == [("b", 8, "s1", "s2")]
    assert [tuple(t.shape) for t in parts.module_with()(EXAMPLE)] == [(0, 2), (0, 2)]


def test_the_run_leaves_mode_and_random_state_alone(detector):
    detector.head.train()
    modes, state = [m.training for m in detector.modules()], torch.get_rng_state()
    planish.capture_parts(detector, (EXAMPLE,))
    assert [m.training for m in detector.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_heights_and_widths_count_at_the_example(parts):
    graph = parts.graphs["backbone"]
    by_hand = 16 * 24 * (27 * 16 + 16 * 8) + 8 * 12 * (16 * 9 * 32 + 32 * 8)
    assert cost(graph).macs == by_hand and cost(graph, batch=3).macs == 3 * by_hand
    assert [tuple(t.shape) for t in graph.example_inputs(batch=5)] == [(5, 3, 32, 48)]


def test_a_model_that_can_be_captured_whole_is(detector):
    parts = planish.capture_parts(detector.backbone, torch.randn(1, 3, 16, 16))
    assert list(parts.graphs) == [""] and parts.eager == ()
    assert parts.module_with()(torch.randn(3, 3, 32, 24))["1"].shape == (3, 8, 8, 6)


class Sometimes(nn.Module):
    """A model around one inner module that cannot stand as a graph; the outer part depends on data."""

    def __init__(self, inner: nn.Module, *calls):
        super().__init__()
        self.inner, self.calls, self.last = inner, calls, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        for call in self.calls:
            call(self.inner, x)
        return self.last(x)


class GivesLoss(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean() if self.training else super().forward(x)


class TakesNumber(nn.Linear):
    def forward(self, x: Tensor, factor: float) -> Tensor:
        return super().forward(x) * factor


class TakesList(nn.Linear):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return super().forward(torch.cat(xs))


class Counts(nn.Linear):
    """Its result depends on how often it was called: no graph does that."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x) * self.count


def tied() -> Sometimes:
    model = Sometimes(nn.Linear(4, 4), lambda m, x: m(x))
    model.last.weight = model.inner.weight
    return model


REFUSED = {
    "a loss in training": (
        lambda: Sometimes(GivesLoss(4, 4), lambda m, x: m(x)),
        "it returns something else in training form",
    ),
    "a number": (lambda: Sometimes(TakesNumber(4, 4), lambda m, x: m(x, 0.5)), "it is called with a float"),
    "other nesting": (
        lambda: Sometimes(TakesList(4, 4), lambda m, x: m([x]), lambda m, x: m([x, x])),
        "its calls are nested in different ways",
    ),
    "other number of dims": (
        lambda: Sometimes(nn.Linear(4, 4), lambda m, x: m(x), lambda m, x: m(x[0])),
        "its calls take tensors of different dtype or number of dims",
    ),
    "other values": (
        lambda: Sometimes(Counts(4, 4), lambda m, x: m(x), lambda m, x: m(x)),
        "the graph gives other values than the module",
    ),
    "never called": (lambda: Sometimes(nn.Linear(4, 4)), "it was not called in the example's run"),
    "a tie to the outside": (tied, "it shares the weight 'last.weight' with the rest of the model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_stand_as_a_graph_stays_eager_with_the_reason(case):
    make, reason = REFUSED[case]
    model = make()
    if case == "a tie to the outside":  # then neither side can be captured
        with pytest.raises(CaptureError, match=reason):
            planish.capture_parts(model, torch.ones(3, 4))
        return
    parts = planish.capture_parts(model, torch.ones(3, 4))
    assert list(parts.graphs) == ["last"]
    (why,) = [entry.why for entry in parts.eager if entry.name == "inner"]
    assert reason in why


def test_wrong_calls_are_refused(detector, parts):
    with pytest.raises(UsageError, match=r"the model is a int; expected an nn.Module"):
        planish.capture_parts(cast(nn.Module, 3), (EXAMPLE,))
    with pytest.raises(CaptureError, match="the model does not run on the example: TypeError"):
        planish.capture_parts(detector, (3,))
    with pytest.raises(UsageError, match=r"'backbon' is not a captured module; did you mean 'backbone'?"):
        parts.module_with({"backbon": parts.graphs["backbone"]})
    with pytest.raises(UsageError, match="the graph for 'head' has the inputs f32"):
        parts.module_with({"head": parts.graphs["backbone"]})
    with pytest.raises(UsageError, match=r"input 'x' is f32\[2,4,16,16\]; expected x : f32\[b,3,s1,s2\]"):
        parts.module_with().backbone(torch.ones(2, 4, 16, 16))
