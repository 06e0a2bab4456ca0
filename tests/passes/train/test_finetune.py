"""finetune: it trains what is trainable and nothing else, says what it did, and refuses what it cannot do."""

import json

import pytest
import torch
from models import mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from train_cases import batches, conv_graph, examples, loader, mlp_graph, same, weights

from planish.ir.capture import capture
from planish.ir.errors import PassError, UsageError
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline
from planish.passes.sparsity import masks


def run(text, graph, data=None, **context):
    """(new graph, result of the last pass)"""
    outcome = Pipeline.parse(text).run(graph, Context(data=batches() if data is None else data, **context))
    return outcome.graph, outcome.steps[-1].result


def accuracy(graph):
    inputs, labels = examples()
    return float((graph(inputs).argmax(1) == labels).float().mean())


def test_it_learns_and_says_so():
    graph = mlp_graph()
    new, result = run("finetune{epochs=12, lr=0.1}", graph, evaluate=accuracy)
    assert result.changed == 6
    details = result.details
    assert details["steps"] == 48 and details["epochs"] == 12 and details["processes"] == 1
    assert len(details["loss"]) == len(details["learning_rate"]) == 12 and len(details["metrics"]) == 13
    assert details["loss"][-1] < 0.2 * details["loss"][0]
    assert details["metric"] == [accuracy(graph), accuracy(new)] and accuracy(new) > 0.95
    assert json.loads(json.dumps(details)) == details


def test_the_same_call_gives_the_same_bytes_and_touches_no_generator():
    state, graph = torch.get_rng_state(), conv_graph()
    data = batches(8, (3, 8, 8))
    first, one = run("finetune{epochs=2}", graph, data)
    torch.rand(7)
    second, other = run("finetune{epochs=2}", graph, data)
    assert same(weights(first), weights(second)) and one.details == other.details
    third, _ = run("finetune{epochs=2, seed=1}", graph, data)
    assert not same(weights(first), weights(third))  # another dropout
    torch.set_rng_state(state)
    run("finetune", graph, data)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_callers_model_is_untouched_also_by_a_failure():
    graph = conv_graph()
    before, text = weights(graph), graph.text()
    run("finetune", graph, batches(8, (3, 8, 8)))
    with pytest.raises(UsageError, match="step 2, epoch 1, batch 2: the loss is nan"):
        run("finetune{lr=1e30, epochs=3}", graph, batches(8, (3, 8, 8)))
    assert same(before, weights(graph)) and graph.text() == text


def test_afterwards_the_graph_is_in_eval_form():
    graph = conv_graph()
    new, _ = run("finetune", graph, batches(8, (3, 8, 8)))
    assert new.text() == graph.text()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(new(x)[:1], new(x)[:1]) and not new.module.training
    torch.testing.assert_close(new(x)[:1], new(x[:1]), rtol=1e-5, atol=1e-6)  # no batch statistics: float32


def test_frozen_stays_frozen_and_tied_stays_tied():
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    model[2].weight = model[0].weight
    model[4].bias.requires_grad_(False)
    graph = capture(model, torch.randn(2, 20))
    new, result = run("finetune", graph)
    assert result.changed == 4  # a tied weight once, and not the frozen bias
    assert new.weight("0.weight") is new.weight("2.weight")
    assert torch.equal(new.weight("4.bias"), model[4].bias) and not new.weight("4.bias").requires_grad
    assert not torch.equal(new.weight("0.weight"), model[0].weight) and new.weight("0.weight").requires_grad


def test_sparse_weights_keep_their_zeros():
    new, _ = run("sparsify{sparsity=0.6}, finetune{epochs=2, lr=0.1, weight-decay=0.1}", mlp_graph())
    before = Pipeline.parse("sparsify{sparsity=0.6}").run(mlp_graph()).graph
    assert masks(before).keys() == masks(new).keys() and masks(new)
    for name, mask in masks(before).items():
        assert torch.equal(mask, new.weight(name) != 0)
        assert not torch.equal(before.weight(name), new.weight(name))


def test_a_folded_model_is_trained():
    new, result = run("fold-batch-norm, finetune", conv_graph(), batches(8, (3, 8, 8)))
    assert result.changed == 6 and "no-batch-norm" in new.properties


def test_a_fake_quantized_model_is_trained():
    data = batches(8, (3, 8, 8))
    text = "fold-batch-norm, insert-fake-quant, calibrate"
    before = Pipeline.parse(text).run(conv_graph(), Context(data=[x for x, _ in data])).graph
    new, result = run("finetune{epochs=3, lr=0.02}", before, data)
    assert result.details["loss"][-1] < result.details["loss"][0]
    assert new.properties == before.properties


def test_without_fuel_nothing_happens():
    graph = mlp_graph()
    new, result = run("finetune", graph, fuel=Fuel(0))
    assert result.changed == 0 and same(weights(new), weights(graph))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_narrow_products_come_near_the_wide_ones(amp):
    wide, _ = run("finetune{epochs=2}", mlp_graph())
    narrow, _ = run(f"finetune{{epochs=2, amp={amp}}}", mlp_graph())
    assert all(w.dtype == torch.float32 for w in narrow.weights.values())
    start = mlp_graph()
    for name, weight in wide.weights.items():
        moved = (weight - start.weight(name)).norm()
        # bfloat16 has 8 bits: each gradient is off by under 1 %; what they add up to by a few per cent
        assert 0 < (narrow.weight(name) - weight).norm() < 0.1 * moved


def test_steps_read_the_data_again_and_stop_in_the_middle():
    _, result = run("finetune{steps=10}", mlp_graph())
    assert result.details["steps"] == 10 and result.details["epochs"] == 3  # of four batches each


def test_a_loader_that_ends_early_is_read_again():
    class Short:
        def __len__(self):
            return 4

        def __iter__(self):
            return iter(batches()[:3])

    _, result = run("finetune{epochs=2}", mlp_graph(), Short())
    assert result.details["steps"] == 8 and result.details["epochs"] == 3


def test_a_loader_without_length():
    class Stream:
        def __iter__(self):
            return iter(batches())

    with pytest.raises(UsageError, match="schedule 'cosine' needs the number of steps, and the loader has no length"):
        run("finetune", mlp_graph(), Stream())
    _, result = run("finetune{epochs=2, schedule=constant, accumulate=3}", mlp_graph(), Stream())
    assert result.details["steps"] == 4 and result.details["learning_rate"] == [0.01, 0.01]
    _, result = run("finetune{steps=6}", mlp_graph(), Stream())
    assert result.details["steps"] == 6


def test_the_loader_is_given_back_as_it_was():
    generator = torch.Generator().manual_seed(5)
    data = loader(generator=generator)
    sampler, state = data.sampler, generator.get_state()
    run("finetune{epochs=2}", mlp_graph(), data)
    assert data.batch_sampler.sampler is sampler and torch.equal(generator.get_state(), state)


def test_epochs_are_shuffled_differently_and_samplers_are_reproducible():
    seen = []

    def loss(outputs, labels):
        seen.append(labels.tolist())
        return nn.functional.cross_entropy(outputs, labels)

    run("finetune{epochs=2}", mlp_graph(), loader(32), loss=loss)
    run("finetune{epochs=2}", mlp_graph(), loader(32), loss=loss)
    assert seen[0] != seen[1] and sorted(seen[0]) == sorted(seen[1]) and seen[:2] == seen[2:]
    run("finetune{epochs=1, seed=3}", mlp_graph(), loader(32), loss=loss)
    assert seen[4] not in seen[:2]
    seen.clear()
    for _ in range(2):
        sampler = WeightedRandomSampler(torch.ones(32), 32, generator=torch.Generator())
        data = DataLoader(TensorDataset(*examples()), batch_size=32, sampler=sampler)
        run("finetune{epochs=2}", mlp_graph(), data, loss=loss)
    assert seen[0] != seen[1] and seen[:2] == seen[2:]


def test_early_stop_goes_back_to_the_best_weights():
    given, kept = iter([0.0, 0.1, 0.5, 0.4, 0.3, 0.9]), []

    def evaluate(graph):
        kept.append(weights(graph))
        return next(given)

    new, result = run("finetune{epochs=9, early-stop=2}", mlp_graph(), evaluate=evaluate)
    assert result.details["stopped_early"] and result.details["epochs"] == 4
    assert result.details["metric"] == [0.0, 0.5] and same(weights(new), kept[2])
    _, result = run("finetune{epochs=2, early-stop=2}", mlp_graph(), evaluate=accuracy)
    assert not result.details["stopped_early"]


def test_progress_counts_steps():
    bars = []

    def progress(items, label):
        bars.append((label, len(items)))
        return items

    run("finetune{epochs=2, accumulate=3}", mlp_graph(), progress=progress)
    assert bars[1:] == [("finetune, epoch 1", 2), ("finetune, epoch 2", 2)]


def test_pipelines_round_trip():
    text = 'finetune{steps=3, lr=0.1, clip=1.0, soft=true, removal="macs=0.5, importance=l2", feature-layers=["a.*"]'
    pipeline = Pipeline.parse(f"{text}, features=0.5}}")
    assert Pipeline.parse(str(pipeline)) == pipeline == Pipeline.from_toml(pipeline.toml())


NO_LABELS = [x for x, _ in batches()]
NANS = [(torch.full((4, 20), float("inf")), torch.zeros(4, dtype=torch.long))]


@pytest.mark.parametrize(
    ("text", "context", "message"),
    [
        ("finetune", {"data": None}, "finetune: no data was given"),
        ("finetune", {"data": []}, "finetune: the loader is empty"),
        ("finetune", {"data": NO_LABELS}, "finetune, epoch 1: batch 1 has no labels"),
        ("finetune", {"data": NANS}, "finetune, epoch 1, batch 1: input 'input_1' holds NaN or infinity"),
        ("finetune{early-stop=1}", {}, "finetune: no evaluation function was given"),
        ("finetune{early-stop=1}", {"evaluate": lambda g: float("nan")}, "finetune: 'evaluate' gave NaN"),
        (
            "finetune",
            {"loss": lambda o, y: o.sum() * float("inf")},
            "finetune, step 1, epoch 1, batch 1: the loss is -?inf|nan",
        ),
        ("finetune", {"loss": lambda o, y: o}, "the loss is \\[8, 5\\]; expected a tensor with one number"),
        ("finetune", {"loss": lambda o, y: o.detach().sum()}, "the loss depends on no trainable weight"),
        ("finetune", {"loss": lambda o, y: o.nonsense}, "the loss fails: AttributeError"),
        ("finetune{label-smoothing=0.1}", {"loss": nn.functional.nll_loss}, "along with a loss of your own"),
    ],
)
def test_what_it_refuses(text, context, message):
    with pytest.raises(UsageError, match=message):
        Pipeline.parse(text).run(mlp_graph(), Context(**{"data": batches(), **context}))


def test_a_gradient_that_is_nan_names_step_and_weight():
    """sqrt at zero: the loss is finite, its gradient is not."""

    def loss(outputs, labels):
        return (outputs - outputs.detach()).abs().sum(1).sqrt().sum()

    with pytest.raises(UsageError, match=r"finetune, step 1, .*: the gradient of weight '.*' is NaN or infinite"):
        run("finetune", mlp_graph(), loss=loss)


def test_nothing_trainable_is_an_error():
    model = mlp().requires_grad_(False)
    with pytest.raises(UsageError, match="none of the model's 6 parameters is trainable; expected at least one"):
        run("finetune", capture(model, torch.randn(2, 20)))


def test_the_loaders_own_error_comes_through():
    def broken():
        yield batches()[0]
        raise OSError("the disk is gone")

    class Data:
        def __len__(self):
            return 4

        def __iter__(self):
            return broken()

    with pytest.raises(PassError, match="OSError: the disk is gone") as caught:
        run("finetune", mlp_graph(), Data())
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("epochs=1, steps=1", "'epochs' and 'steps' are given; leave one out"),
        ("epochs=0", "epochs is 0; expected 1 or more"),
        ("lr=0", "lr is 0; expected a number above 0"),
        ("momentum=1", "momentum is 1; expected at least 0 and below 1"),
        ("distill=1.5", "distill is 1.5; expected from 0 to 1"),
        ("optimizer=adam", "unknown optimizer 'adam'; did you mean 'adamw'?"),
        ("schedule=cos", "unknown schedule 'cos'"),
        ("amp=int8", "unknown amp 'int8'; it has: no, bf16, fp16"),
        ("regularizer=lasso", "unknown regularizer 'lasso'; did you mean 'group-lasso'?"),
        ("soft=true", "'soft' is given without 'removal'"),
        ("regularizer=growing", "'regularizer=growing' is given without 'removal'"),
        ('removal="macs=0.5"', "'removal' is given; it belongs to"),
        ('soft=true, removal="mac=0.5"', "prune-channels: unknown option 'mac'; did you mean 'macs'?"),
        ("feature-layers=[a]", "'feature-layers' is given"),
        ("nesterov=true, momentum=0", "'nesterov' is given"),
        ("label-smoothing=0.1, distill=1", "labels are not used then"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UsageError) as caught:
        Pipeline.parse(f"finetune{{{options}}}")
    assert message in str(caught.value)
