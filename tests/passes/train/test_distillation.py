"""Distillation: the losses are those of the papers, the teacher is the unpruned model and learns nothing."""

import numpy as np
import pytest
import scipy.special
import torch
from torch import nn
from torch.nn import functional
from train_cases import batches, conv_graph, mlp_graph, resnet_graph, same, weights

from planish.ir.capture import capture
from planish.ir.errors import UsageError
from planish.passes.base import Context
from planish.passes.pipeline import Pipeline
from planish.passes.train.distillation import Match, Teacher, attention_map, feature_loss, find_matches, soft_label_loss
from planish.passes.train.finetune import Finetune
from planish.passes.train.training_form import TrainingForm, Values

IMAGES = batches(8, (3, 16, 16), 10)


def run(text, graph, data, **context):
    return Pipeline.parse(text).run(graph, Context(data=data, **context))


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3)])
def test_soft_labels_are_the_divergence_at_the_temperature(shape):
    """scipy's relative entropy in float64; the loss is computed in float32."""
    student, teacher = torch.randn(shape), torch.randn(shape)
    p, q = (scipy.special.softmax(t.double().numpy() / 3.0, axis=1) for t in (teacher, student))
    expected = 9.0 * scipy.special.rel_entr(p, q).sum(1).mean()
    assert float(soft_label_loss((student,), [teacher], 3.0, 1)) == pytest.approx(expected, rel=1e-5)


def test_soft_labels_have_the_gradient_of_hinton_et_al():
    """At high temperature T^2 times the gradient comes to (z - v) / N for logits of mean zero (their equation 4)."""
    student = torch.randn(1, 5)
    student = (student - student.mean()).requires_grad_()
    teacher = torch.randn(1, 5)
    teacher = teacher - teacher.mean()
    soft_label_loss(student, teacher, 1000.0, 1).backward()
    # the expansion's next term is smaller by 1 / T; float32 leaves about 1e-3 of a logarithm at that temperature
    torch.testing.assert_close(student.grad, ((student - teacher) / 5).detach(), rtol=0.02, atol=2e-3)


def test_features_are_the_mean_square_or_the_distance_of_attention_maps():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 6, 4, 4))
    c = b[:, :4]
    values = [torch.tensor(v, dtype=torch.float32) for v in (a, b, c)]
    whole, thinned = Match("a", None, None), Match("b", None, None, 1)
    maps = [(v**2).mean(1).reshape(3, -1) for v in (a, c)]
    maps = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps]
    expected = (((a - b) ** 2).mean() + ((maps[1] - maps[0]) ** 2).sum(1).mean()) / 2
    student, teacher = Values(None, (values[0], values[2])), Values(None, (values[1], values[0]))
    assert float(feature_loss([whole, thinned], student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert attention_map(values[0], 1).shape == (3, 16)


def test_inner_values_are_those_of_the_modules():
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    graph = capture(model, torch.randn(2, 20))
    x = torch.randn(3, 20)
    form = TrainingForm(graph, [m.student for m in find_matches(graph, graph.copy(), [], "here")])
    values = form([x])
    torch.testing.assert_close(values.outputs, model(x))
    torch.testing.assert_close(values.inner[0], model[0](x))
    assert form.module.get_parameter("0.weight") is graph.weight("0.weight")


def test_without_labels_the_pruned_model_comes_nearer_to_the_whole_one():
    graph, inputs = mlp_graph(), [x for x, _ in batches()]
    before = weights(graph)

    def distance(text):
        pruned = run(text, graph, inputs).graph
        return sum(float(functional.mse_loss(pruned(x), graph(x)).detach()) for x in inputs)

    taught = distance("prune-channels{ratio=0.5}, finetune{epochs=30, distill=1, lr=0.1}")
    assert taught < 0.5 * distance("prune-channels{ratio=0.5}")
    assert same(before, weights(graph))


@pytest.mark.parametrize("options", ["distill=0.5, features=0.5", "distill=1, features=1.0, feature-layers=[layer1.*]"])
def test_the_teacher_learns_nothing_and_the_student_does(options):
    graph = resnet_graph()
    text, before = graph.text(), weights(graph)
    outcome = run(f"prune-channels{{macs=0.6}}, finetune{{epochs=2, {options}}}", graph, IMAGES)
    losses = outcome.steps[-1].result.details["loss"]
    assert losses[1] < losses[0]
    assert graph.text() == text and same(before, weights(graph))
    assert all(weight.grad is None for weight in graph.weights.values())


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn():
    """Only in eval form are both the same function: without batch norm and dropout."""
    outcome = run("finetune{distill=1}", mlp_graph(), [x for x, _ in batches()])
    assert outcome.steps[0].result.details["loss"][0] == pytest.approx(0, abs=1e-6)  # float32 softmax twice


def test_the_loss_is_the_mixture():
    """One step's loss against the terms, each from PyTorch; a fresh graph with its own original."""
    graph, other = mlp_graph(), mlp_graph()
    with torch.no_grad():
        other.weight("4.weight").mul_(-1)
    (x, y), *_ = data = batches(32)
    shown = run("finetune{distill=0.3, temperature=2.0}", graph, data, original=other).steps[0].result.details["loss"]
    soft = functional.kl_div((graph(x) / 2).log_softmax(1), (other(x) / 2).softmax(1), reduction="batchmean")
    expected = 0.7 * functional.cross_entropy(graph(x), y) + 0.3 * 4 * soft
    assert shown[0] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_which_layers_are_compared():
    graph = resnet_graph()
    cut = run("prune-channels{ratio=0.3, keep=[layer1.*]}", graph, IMAGES).graph
    matches = {match.layer: match for match in find_matches(cut, graph, [], "here")}
    assert matches["layer1.0.conv1.0.weight"].thinned is None and matches["head.weight"].thinned is None
    assert matches["layer2.0.conv1.0.weight"].thinned == 1
    chosen = find_matches(cut, graph, ["layer2.*"], "here")
    assert {match.layer for match in chosen} == {name for name in matches if name.startswith("layer2")}
    assert isinstance(Teacher(graph, chosen, torch.device("cpu"))([IMAGES[0][0]]).inner[0], torch.Tensor)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune{features=1.0, feature-layers=[stme]}", "'stme' in 'feature-layers' matches no weight; did you mean"),
        ("fold-batch-norm, finetune{features=1.0}", "put 'finetune' before 'fold-batch-norm'"),
    ],
)
def test_layers_that_cannot_be_compared(text, message):
    with pytest.raises(UsageError, match=message):
        run(text, resnet_graph(), IMAGES)


def test_a_model_of_which_only_vectors_are_left_cannot_be_compared():
    graph = capture(nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 5)), torch.randn(2, 20))
    other = capture(nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 6)), torch.randn(2, 20))
    cut = run("prune-channels{ratio=0.5}", other, None).graph
    with pytest.raises(UsageError, match="no layer makes a value that can be compared"):
        run("finetune{features=1.0}", graph, batches(), original=cut)


def test_without_an_original_there_is_nothing_to_learn_from():
    with pytest.raises(UsageError, match="finetune: there is no original model to learn from"):
        Finetune(distill=0.5).run(conv_graph(), Context(data=batches(8, (3, 8, 8))))
