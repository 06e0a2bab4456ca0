"""Outcomes on disk: the second compilation gives what the first gave, and nothing that has become wrong since."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import planish
from planish import compiler, outcomes
from planish.backends.target import Target
from planish.ir.errors import PlanishError, UsageError
from planish.outcome_key import order_digest
from planish.passes.base import Context

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BOARD = "raspberry-pi-4"
QUANTIZED = "canonicalize, fold-batch-norm, insert-fake-quant, calibrate"


class Net(nn.Module):
    """Two convs, of which the second may share the first one's weight; a scale that is a Python number."""

    def __init__(self, scale: float = 0.5, tied: bool = False):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.scale, self.shift = nn.BatchNorm2d(3), scale, torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x):
        y = torch.relu(self.norm(self.first(x)))
        return {"y": self.second(y) * self.scale + self.shift}


def net(seed: int = 0, **options) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(**options).eval()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PLANISH_CACHE", "on")
    monkeypatch.setenv("PLANISH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def captures(monkeypatch) -> list:
    """The models that were captured in earnest."""
    seen: list = []

    def counted(model, args):
        seen.append(model)
        return planish.capture(model, args)

    monkeypatch.setattr(compiler, "capture", counted)
    return seen


def digests(made, path: Path) -> tuple[bytes, str]:
    return made.save(path).read_bytes(), made.graph.text()


# ---------------------------------------------------------------- the same again


@pytest.mark.parametrize(
    ("recipe", "target"), [("", "local"), ("canonicalize, fold-batch-norm", BOARD), (QUANTIZED, "local")]
)
def test_a_hit_gives_what_the_first_time_gave(recipe, target, captures, tmp_path):
    first, second = (planish.compile(net(), X, recipe=recipe, target=target, data=[X]) for _ in range(2))
    assert len(captures) == 1 and "lookup" in second.report.seconds and "passes" not in second.report.seconds
    assert first.report.untimed() == second.report.untimed()
    assert digests(first, tmp_path / "a") == digests(second, tmp_path / "b")
    one, two = (made.graph.module.state_dict() for made in (first, second))
    assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert first.graph.properties == second.graph.properties
    if target == "local":
        assert torch.equal(first(X)["y"], second(X)["y"])
        with torch.no_grad():
            torch.testing.assert_close(second.graph(X)["y"], first.graph(X)["y"], rtol=0, atol=0)


def test_a_hit_is_trainable_and_apart_from_its_code(captures):
    planish.compile(net(), X)
    found = planish.compile(net(), X)
    before = found(X)["y"]
    found.graph.module.train()
    found.graph(X)["y"].sum().backward()
    with torch.no_grad():
        for parameter in found.graph.parameters.values():
            assert parameter.grad is not None
            parameter.add_(1)
    assert torch.equal(found(X)["y"], before) and len(captures) == 1
    assert found.profile(runs=1).layers  # of the graph that the code was made for, not of the trained one


def test_graphs_and_files_are_found_by_their_content(captures, tmp_path):
    graph = planish.capture(net(), X)
    graph.save(tmp_path / "g.graph")
    for source in (graph, graph.copy(), str(tmp_path / "g.graph"), tmp_path / "g.graph"):
        planish.compile(source, X, target=BOARD)
    assert len(captures) == 2  # the first of each kind
    other = graph.copy()
    with torch.no_grad():
        next(iter(other.parameters.values())).view(-1)[0] += 1
    assert "passes" in planish.compile(other, X, target=BOARD).report.seconds


def test_another_process_finds_it(tmp_path, folder):
    script = tmp_path / "script.py"
    script.write_text(
        "import hashlib, sys, torch\nfrom torch import nn\nimport planish\n"
        "torch.set_num_threads(1)\ntorch.manual_seed(0)\nm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())\n"
        "made = planish.compile(m.eval(), torch.ones(1, 3, 8, 8), target='raspberry-pi-4')\n"
        "made.save(sys.argv[1])\n"
        "print(sorted(made.report.seconds), 'torch._dynamo' in sys.modules)\n"
        "print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())\n"
    )
    outputs = [
        subprocess.run([sys.executable, script, tmp_path / "x"], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    (first, one), (second, two) = (text.splitlines() for text in outputs)
    assert first.startswith("['build', 'capture', 'lookup', 'passes']") and one == two
    assert second == "['build', 'lookup'] False"  # and what export stands on was not even loaded


def test_a_model_that_was_found_compiles_when_its_code_is_gone(captures, folder, tmp_path):
    first = planish.compile(net(), X)
    assert first._artifact.key is not None
    (folder / f"{first._artifact.key}.code").unlink()
    second = planish.compile(net(), X)
    assert len(captures) == 1
    assert digests(first, tmp_path / "a") == digests(second, tmp_path / "b")


def test_a_damaged_outcome_is_made_again(captures, folder, caplog):
    planish.compile(net(), X)
    outcome = max(folder.iterdir(), key=lambda path: b"golden.safetensors" in path.read_bytes())
    content = bytearray(outcome.read_bytes())
    content[len(content) // 2] ^= 1
    outcome.write_bytes(content)
    with caplog.at_level(logging.WARNING, "planish"):
        assert "passes" in planish.compile(net(), X).report.seconds
    assert "built again" in caplog.text and len(captures) == 2
    planish.compile(net(), X)
    assert len(captures) == 2


# ---------------------------------------------------------------- what must be seen


def _buffer(model):
    model.norm.running_mean[0] += 1


def _constant(model):
    model.shift = model.shift + 1


def _attribute(model):
    model.scale = 0.25


def _weight(model):
    with torch.no_grad():
        model.first.weight.view(-1).view(torch.int32)[0] ^= 1


def _frozen(model):
    model.first.weight.requires_grad_(False)


def _function(model):
    model.norm.forward = lambda x: x * 2


@pytest.mark.parametrize("change", [_buffer, _constant, _attribute, _weight, _frozen, _function])
def test_a_change_of_the_model_is_seen(change, captures):
    planish.compile(net(), X, recipe="", target=BOARD)
    model = net()
    change(model)
    found = planish.compile(model, X, recipe="", target=BOARD)
    assert len(captures) == 2
    with torch.no_grad():
        assert torch.equal(found.graph(X)["y"], model(X)["y"])
    assert found.graph.weight("first.weight").requires_grad == model.first.weight.requires_grad


def test_another_tie_is_seen(captures):
    tied, apart = net(tied=True), net()
    with torch.no_grad():
        apart.second.weight.copy_(apart.first.weight)
    for model in (tied, apart, net(tied=True)):
        graph = planish.compile(model, X, recipe="", target=BOARD).graph
        assert len(graph.parameters) == len(list(model.parameters()))
    assert len(captures) == 2


def test_a_change_of_the_data_is_seen(captures):
    scales = []
    for data in ([X], [X * 2], [X]):
        graph = planish.compile(net(), X, recipe=QUANTIZED, data=data, target=BOARD).graph
        scales.append([float(t) for name, t in graph.weights.items() if name.endswith("activation_scale")])
    assert scales[0] == scales[2] != scales[1] and len(captures) == 2


def test_every_part_of_an_order_is_in_its_digest():
    row = Target.get(BOARD)
    base = {"recipe": QUANTIZED, "data": [X], "target": row, "seed": 0, "batch": 2}
    changes = (
        {}, {"recipe": f"{QUANTIZED}, lower-integers"}, {"recipe": f"{QUANTIZED}{{observer=percentile}}"},
        {"data": [X + 1]}, {"data": [X, X]}, {"data": X}, {"data": [(X, 1)]}, {"data": None}, {"seed": 1}, {"batch": 1},
        {"batch": None}, {"target": replace(row, l2_kib=1)}, {"target": Target.get("raspberry-pi-5")},
    )  # fmt: skip

    def digest(recipe, data, target, seed, batch):
        return order_digest(planish.Pipeline.parse(recipe), Context(data, target, seed), batch)

    digests = [digest(**{**base, **change}) for change in changes]
    assert None not in digests and len(set(digests)) == len(changes) and digest(**base) == digests[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # sums in another order
    try:
        assert digest(**base) != digests[0]
    finally:
        torch.set_num_threads(threads)


def test_a_change_of_the_model_s_source_is_seen(captures, tmp_path):
    template = (
        "import torch\nclass M(torch.nn.Module):\n    def forward(self, x):\n        {}return torch.relu(x) * 2\n"
    )
    places = []
    for number, line in enumerate(("", "# the same ops on another line\n        ")):
        scope: dict = {}
        file = tmp_path / str(number) / "model.py"
        file.parent.mkdir()
        file.write_text(template.format(line))
        exec(compile(file.read_text(), file, "exec"), scope)
        graph = planish.compile(scope["M"](), X, target=BOARD).graph
        places.append({node.meta["source"] for node in graph.calls("relu")})
    assert places == [{"model.py:4"}, {"model.py:5"}] and len(captures) == 2


# ---------------------------------------------------------------- what is not kept


@pytest.mark.parametrize(
    "options",
    [
        {"fuel": 1},
        {"evaluate": lambda graph: 0.0},
        {"loss": lambda outputs, labels: outputs.sum()},
        {"data": iter([X])},
        {"recipe": [planish.wrap(lambda module: None)]},
        {"recipe": "finetune{steps=1, distill=1.0}", "data": [X]},
    ],
    ids=["fuel", "evaluate", "loss", "a loader", "a function as a pass", "training"],
)
def test_what_follows_from_more_than_the_key_is_not_kept(options, captures):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    for count in (1, 2):
        assert "lookup" not in planish.compile(model, X, target=BOARD, **options).report.seconds
        assert len(captures) == count


def test_off_means_off(captures, folder, monkeypatch):
    planish.compile(net(), X, target=BOARD, cache=False)
    monkeypatch.setenv("PLANISH_CACHE", "off")
    assert "lookup" not in planish.compile(net(), X, target=BOARD).report.seconds
    assert len(captures) == 2 and not folder.exists()


def test_wrong_arguments_are_refused_on_a_hit_too(captures):
    planish.compile(net(), X, recipe=QUANTIZED, data=[X], target=BOARD)
    with pytest.raises(UsageError, match="no data was given"):
        planish.compile(net(), X, recipe=QUANTIZED, target=BOARD)
    with pytest.raises(UsageError, match="one batch size"):
        planish.compile(net(), X, target=BOARD, batch="dynamic")


def test_a_lazy_module_is_captured_or_refused_as_without_a_cache():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()).eval()
    results = []
    for cache in (False, True):
        try:
            results.append(planish.compile(model, X, target=BOARD, cache=cache).report.seconds.keys() - {"lookup"})
        except PlanishError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_what_cannot_be_written_down_is_compiled_all_the_same(captures, monkeypatch):
    def refuse(*_):
        raise UsageError("pack", "a weight is sparse")

    monkeypatch.setattr(outcomes, "pack", refuse)
    for count in (1, 2):
        planish.compile(net(), X, target=BOARD)
        assert len(captures) == count
