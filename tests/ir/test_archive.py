import json
import zipfile

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import planish
from planish.ir import rewrite
from planish.ir.archive import MAGIC_MEMBER, WEIGHTS_MEMBER
from planish.ir.errors import UsageError
from planish.ir.verify import verify


class Model(nn.Module):
    """Ties, frozen weights, a buffer, constants, infinities, dtypes and nested inputs and outputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0, 0.0]))

    def forward(self, named, flag, *, extra):
        y = self.second(torch.relu(self.first(named["x"]))) + self.mask
        y = y.clamp(max=float("inf")).to(torch.float64)
        return [y, {"softmax": y.softmax(1), "extra": extra[:, 1:]}] if flag else y


def graph():
    program = torch.export.export(
        Model(),
        ({"x": torch.randn(3, 4)}, True),
        {"extra": torch.randn(3, 5)},
        dynamic_shapes={"named": {"x": {0: torch.export.Dim.AUTO}}, "flag": None, "extra": {0: torch.export.Dim.AUTO}},
    )
    graph = planish.capture(program)
    graph.properties.add("fake-quant")
    return graph


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("archive") / "model.planish"
    graph().save(path)
    return path


def test_round_trip(saved):
    torch.manual_seed(0)
    original, loaded = graph(), planish.Graph.load(saved)
    verify(loaded)
    assert str(loaded) == str(original)
    assert loaded.properties == {"fake-quant"}
    assert {n: t.requires_grad for n, t in loaded.parameters.items()} == {
        n: t.requires_grad for n, t in original.parameters.items()
    }
    assert loaded.module.get_parameter("first.weight") is loaded.module.get_parameter("second.weight")
    assert loaded.module.state_dict().keys() == original.module.state_dict().keys()
    call = ({"x": torch.randn(5, 4)}, True), {"extra": torch.randn(5, 5)}
    torch.testing.assert_close(loaded(*call[0], **call[1]), original(*call[0], **call[1]), rtol=0, atol=0)
    sources = [[n.meta.get("source") for n in g.nodes] for g in (loaded, original)]
    assert sources[0] == sources[1]


def test_a_loaded_graph_trains(saved):
    loaded = planish.Graph.load(saved).train()
    loaded({"x": torch.randn(2, 4)}, True, extra=torch.randn(2, 5))[1]["softmax"][:, 0].sum().backward()
    assert loaded.weight("first.weight").grad is not None


def test_the_same_graph_gives_the_same_bytes(saved, tmp_path):
    planish.Graph.load(saved).save(tmp_path / "again")
    planish.Graph.load(saved).copy().save(tmp_path / "copied")
    assert saved.read_bytes() == (tmp_path / "again").read_bytes() == (tmp_path / "copied").read_bytes()


def test_there_is_no_pickle_in_the_file(saved):
    with zipfile.ZipFile(saved) as archive:
        assert archive.namelist() == [MAGIC_MEMBER, WEIGHTS_MEMBER]
        json.loads(archive.read(MAGIC_MEMBER))
        safetensors.torch.load(archive.read(WEIGHTS_MEMBER))


def test_weights_that_are_slices_of_one_tensor_can_be_saved(tmp_path):
    graph = planish.capture(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), torch.randn(2, 2))
    both = torch.randn(4, 2)
    rewrite.set_weight(graph, "0.weight", both[:2])
    rewrite.set_weight(graph, "1.weight", both[2:])
    graph.save(tmp_path / "g")
    x = torch.randn(3, 2)
    torch.testing.assert_close(planish.Graph.load(tmp_path / "g")(x), graph(x), rtol=0, atol=0)


def test_a_failed_save_leaves_the_old_file(saved, tmp_path):
    class Foreign(nn.Module):
        def forward(self, x):
            return torch.max(x, 1)

    path = tmp_path / "model"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="an input or output is a max; tuples, lists and dicts can be saved"):
        planish.capture(Foreign(), torch.randn(2, 3)).save(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def edited(saved, target, change):
    """The archive with its document changed."""
    with zipfile.ZipFile(saved) as archive:
        document, weights = json.loads(archive.read(MAGIC_MEMBER)), archive.read(WEIGHTS_MEMBER)
    document = change(document) or document
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(MAGIC_MEMBER, json.dumps(document))
        archive.writestr(WEIGHTS_MEMBER, weights)
    return target


def call(document, name):
    return next(node for node in document["nodes"] if node["name"] == name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "has format 2; this version reads 1"),
        (lambda d: ["a list"], "has format None"),
        (lambda d: [d.pop("nodes")] and d, "is not a valid graph: KeyError"),
        (lambda d: call(d, "relu").update(target="os.system"), "unknown op 'os.system'"),
        (lambda d: call(d, "relu").update(target="load_library.__call__.x"), "unknown op"),
        (lambda d: call(d, "relu").update(target="aten.relu"), "unknown op 'aten.relu'"),
        (lambda d: call(d, "relu").update(op="call_method"), "is a 'call_method'"),
        (lambda d: call(d, "mask").update(target="forward.__globals__"), "the file has no such weight"),
        (lambda d: call(d, "relu").update(args={"tuple": [{"node": "softmax"}]}), "KeyError"),
        (lambda d: call(d, "relu").update(args={"pickle": "x"}), "unknown kind 'pickle'"),
        (lambda d: call(d, "relu").update(args={"tuple": [{"torch": "torch.load"}]}), "is no dtype"),
        (lambda d: d["inputs"][0].update(shape=["b", 7]), "its inputs do not fit"),
        (lambda d: [d["inputs"].pop()] and d, "not a valid graph"),
        (lambda d: d["call"].update({"in": {"tuple": [{"tuple": [0]}, {"dict": {}}]}}), "do not fit the call form"),
        (lambda d: d["ties"].update({"second.weight": "nothing"}), "KeyError"),
    ],
)
def test_edited_files_are_refused(saved, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        planish.Graph.load(edited(saved, tmp_path / "edited", change))


def test_the_editing_itself_is_not_what_is_refused(saved, tmp_path):
    assert str(planish.Graph.load(edited(saved, tmp_path / "same", lambda d: None))) == str(planish.Graph.load(saved))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        planish.Graph.load(tmp_path / "nothing")


@given(data=st.data())
def test_truncated_files_are_refused(saved, tmp_path_factory, data):
    content = saved.read_bytes()
    path = tmp_path_factory.mktemp("cut") / "cut"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(UsageError, match="is not a readable graph"):
        planish.Graph.load(path)


@given(data=st.data())
def test_a_flipped_byte_is_refused_or_changes_nothing(saved, tmp_path_factory, data):
    """zip's own checksums cover the members; a date in its directory may change without harm."""
    content = bytearray(saved.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flip") / "flipped"
    path.write_bytes(content)
    try:
        loaded = planish.Graph.load(path)
    except UsageError:
        return
    assert str(loaded) == str(planish.Graph.load(saved))
