"""prune-gradually: every cut lands on its path, the last one on the target; momentum survives; it resumes."""

import pytest
from train_cases import Interrupted, batches, conv_graph, mlp_graph, resnet_graph, same, weights

from planish.ir.cost import cost
from planish.ir.errors import UsageError
from planish.passes.base import Context, Fuel
from planish.passes.pipeline import Pipeline
from planish.passes.prune.prune_channels import PruneChannels
from planish.passes.train.finetune import Finetune
from planish.passes.train.pace import PACES, PolynomialSchedule

IMAGES = batches(8, (3, 16, 16), 10)


def run(text, graph, data=IMAGES, **context):
    outcome = Pipeline.parse(text).run(graph, Context(data=data, **context))
    return outcome.graph, outcome.steps[-1].result


def test_each_cut_is_on_the_path_and_the_last_one_on_the_target():
    graph = resnet_graph()
    new, result = run('prune-gradually{macs=0.5, cuts=3, pace=geometric, finetune="lr=0.02"}', graph)
    shares = [cut["macs"] for cut in result.details["cuts"]]
    assert shares == pytest.approx([0.5 ** (1 / 3), 0.5 ** (2 / 3), 0.5], rel=0.005)
    assert cost(new).macs / cost(graph).macs == shares[-1] == result.details["macs"]
    assert result.changed == sum(cut["groups_removed"] for cut in result.details["cuts"]) > 0
    assert all(cut["finetune"]["steps"] == 4 for cut in result.details["cuts"])


def test_a_ratio_is_of_the_whole_models_channels():
    """Layers of 12 and 16 channels. Each cut rounds down, so a layer may keep one channel more than in one cut."""
    new, result = run("prune-gradually{ratio=0.5, cuts=3}", conv_graph(), batches(8, (3, 8, 8)))
    assert new.weight("0.weight").shape[0] in (6, 7) and new.weight("3.weight").shape[0] in (8, 9)
    assert 12 <= result.changed <= 14 and len(result.details["cuts"]) == 3


def test_one_cut_is_prune_and_finetune():
    graph = resnet_graph()
    one, _ = run('prune-gradually{macs=0.6, pace=one-shot, prune="importance=l2", finetune="epochs=2"}', graph)
    other, _ = run("prune-channels{macs=0.6, importance=l2}, finetune{epochs=2}", graph)
    assert same(weights(one), weights(other))


@pytest.mark.parametrize("options", ["momentum=0.9", "optimizer=adamw, lr=0.001"])
def test_momentum_of_what_survives_goes_on(options):
    """By hand: the state that one training returns, thinned by the cut's survivors, starts the next one."""
    data = batches(8)
    new, _ = run(f'prune-gradually{{ratio=0.5, cuts=2, pace=geometric, finetune="{options}"}}', mlp_graph(), data)
    training = Pipeline.parse(f"finetune{{{options}}}").passes[0]
    assert isinstance(training, Finetune)
    graph, ctx, momentum = mlp_graph(), Context(data=data), {}
    channels = 1.0
    for left in (0.5**0.5, 0.5):
        result = PruneChannels(ratio=1 - left / channels).run(graph, ctx)
        before, after = result.details["groups"]
        channels *= after / before
        for name, state in momentum.items():
            for key, value in state.items():
                if value.ndim:
                    assert value.shape != graph.weight(name).shape or name == "4.bias"
                    state[key] = result.survivors.take(name, value)
        if momentum:
            assert any(float(value.abs().sum()) > 0 for state in momentum.values() for value in state.values())
        _, momentum = training.train(graph, ctx, momentum)
    assert same(weights(graph), weights(new))


@pytest.mark.parametrize("after", [0, 4, 10])
def test_it_resumes_as_a_whole(tmp_path, after):
    """Three cuts and four steps after each; Ctrl-C in the first, between, and in the third training."""
    options = 'ratio=0.5, cuts=3, finetune="lr=0.02, checkpoint-every=1, distill=0.5"'
    data = batches(8, (3, 8, 8))
    expected, one = run(f"prune-gradually{{{options}}}", conv_graph(), data)
    text = f'prune-gradually{{{options}, checkpoint="{tmp_path}"}}'
    with pytest.raises(KeyboardInterrupt):
        run(text, conv_graph(), Interrupted(data, after))
    resumed, other = run(text, conv_graph(), data)
    assert same(weights(resumed), weights(expected)) and resumed.text() == expected.text()
    assert one.details == other.details and one.changed == other.changed
    with pytest.raises(UsageError, match="it is of another run: its model is"):
        run(text, resnet_graph())


def test_a_cut_that_a_small_model_cannot_meet_is_left_out_unless_it_is_the_last():
    """One of the second conv's 16 channels is 5.3 % of the MACs: cuts to 97.3 % and 92.0 % are left out."""
    data, only = batches(8, (3, 8, 8)), 'pace=geometric, prune="only=[\\"3\\"]"'
    new, result = run(f"prune-gradually{{macs=0.8947, cuts=4, {only}}}", conv_graph(), data)
    assert cost(new).macs / cost(conv_graph()).macs == pytest.approx(0.8947, rel=0.005)
    left_out = "it is left out: prune-channels: no choice of channels"
    assert [skip.where for skip in result.skipped if left_out in skip.why] == ["cut 1", "cut 3"]
    assert result.changed == 2 and all(cut["finetune"]["steps"] == 4 for cut in result.details["cuts"])
    with pytest.raises(UsageError, match=r"no choice of channels comes within 0.5 % of macs"):
        run(f"prune-gradually{{macs=0.97, cuts=2, {only}}}", conv_graph(), data)


def test_without_fuel_nothing_happens():
    graph = resnet_graph()
    new, result = run("prune-gradually{macs=0.5}", graph, fuel=Fuel(0))
    assert result.changed == 0 and new.text() == graph.text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "prune-channels: no target is given"),
        ("macs=2.0", "macs is 2; expected the share"),
        ("macs=0.5, cuts=0", "cuts is 0; expected 1 or more"),
        ("macs=0.5, pace=cubic", "unknown pace 'cubic'; it has: one-shot, geometric, polynomial"),
        ('macs=0.5, prune="params=0.5"', "'params' is among the options of prune-channels; give targets to"),
        ('macs=0.5, prune="floor=[\\"0.2\\"]"', "they are shares of the model before each cut; use 'keep' or 'only'"),
        ('macs=0.5, prune="importanc=l2"', "unknown option 'importanc'; did you mean 'importance'?"),
        ('macs=0.5, finetune="lr=0"', "finetune: lr is 0"),
        ('macs=0.5, finetune="checkpoint=a"', "give it to prune-gradually"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UsageError) as caught:
        Pipeline.parse(f"prune-gradually{{{options}}}")
    assert message in str(caught.value)


def test_an_evaluation_is_needed_where_the_training_needs_one():
    with pytest.raises(UsageError, match="no evaluation function was given"):
        run('prune-gradually{macs=0.5, finetune="early-stop=1"}', resnet_graph())


def test_paces():
    assert PACES["one-shot"](0.3, 5) == [0.3]
    assert PACES["geometric"](0.25, 2) == pytest.approx([0.5, 0.25])
    # TFMOT's PolynomialDecay in sparsities: final + (initial - final) (1 - t / T)^3, with shares that remain instead
    expected = [1 - (0.6 + (0 - 0.6) * (1 - t / 4) ** 3) for t in (1, 2, 3, 4)]
    assert PACES["polynomial"](0.4, 4) == pytest.approx(expected)


def test_the_polynomial_schedule_for_loops_of_ones_own():
    schedule = PolynomialSchedule(1.0, 0.5, 10, power=1)
    assert [schedule.target(step) for step in (-1, 0, 5, 10, 99)] == pytest.approx([1, 1, 0.75, 0.5, 0.5])
    for wrong in ({"steps": 0}, {"steps": 3, "power": 0}):
        with pytest.raises(UsageError):
            PolynomialSchedule(1.0, 0.5, **wrong)


def test_pipelines_round_trip():
    text = 'prune-gradually{macs=0.5, cuts=2, prune="keep=[stem], importance=l2", finetune="lr=0.1, distill=0.5"}'
    pipeline = Pipeline.parse(text)
    assert Pipeline.parse(str(pipeline)) == pipeline == Pipeline.from_toml(pipeline.toml())
