import io
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

import planish
from planish.ir.errors import UsageError


class Doubled(nn.Module):
    """Symbolic arithmetic, a weight, a buffer and a container."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x):
        return {"y": self.fc(x.view(x.shape[0] * 2, -1)) + self.shift}


class Bomb:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def model():
    return Doubled().eval()


@pytest.fixture
def pt2(model, tmp_path):
    path = tmp_path / "model.pt2"
    dims = {"x": {0: torch.export.Dim.AUTO}}
    torch.export.save(torch.export.export(model, (torch.randn(3, 12),), dynamic_shapes=dims), path)
    return path


def rewritten(path, change):
    """The archive with its members changed by `change(members)`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def edit_json(suffix, change):
    def apply(members):
        name = next(name for name in members if name.endswith(suffix))
        document = json.loads(members[name])
        change(document)
        members[name] = json.dumps(document).encode()

    return apply


def test_round_trip_with_a_dynamic_batch(pt2, model):
    graph = planish.capture(pt2)
    x = torch.randn(5, 12)
    torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)  # the same ops, the same bits
    assert graph.inputs[0].shape == ("b", 12)
    graph.module.load_state_dict(model.state_dict(), strict=True)


def test_an_export_of_ours_comes_back(tmp_path, model):
    graph = planish.capture(model, torch.randn(3, 12))
    torch.export.save(graph.exported_program(), tmp_path / "ours.pt2")
    again = planish.capture(tmp_path / "ours.pt2")
    x = torch.randn(7, 12)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)  # the same ops, the same bits


def test_example_inputs_are_never_unpickled(pt2, tmp_path, model):
    trace = tmp_path / "trace"

    def poison(members):
        name = next(name for name in members if "sample_inputs" in name)
        members[name] = pickle.dumps(Bomb(trace))

    graph = planish.capture(rewritten(pt2, poison))
    assert not trace.exists()
    x = torch.randn(2, 12)
    torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)  # the same ops, the same bits


def test_a_pickled_weight_is_refused(pt2, tmp_path):
    trace = tmp_path / "trace"

    def poison(members):
        edit_json("weights_config.json", lambda d: d["config"]["fc.weight"].update(use_pickle=True))(members)
        name = next(name for name in members if name.endswith("weights/weight_0"))
        members[name] = pickle.dumps(Bomb(trace))

    with pytest.raises(UsageError, match=r"a pickled entry .*could run foreign code"):
        planish.capture(rewritten(pt2, poison))
    assert not trace.exists()


@pytest.mark.parametrize("member", ["data/constants/custom_obj_0", "data/weights/model.pt", "data/aotinductor/m/a.so"])
def test_foreign_members_are_refused(pt2, member):
    def add(members):
        members["model/" + member] = b"x"

    with pytest.raises(UsageError, match="neither a graph nor a plain tensor"):
        planish.capture(rewritten(pt2, add))


def call_of(document, op):
    nodes = document["graph_module"]["graph"]["nodes"]
    return next(node for node in nodes if op in node["target"])


@pytest.mark.parametrize("target", ["torch.os.system", "torch.ops.load_library.x", "torch.ops.import_module.__call__"])
def test_a_call_outside_torch_ops_is_refused(pt2, target):
    change = edit_json("models/model.json", lambda d: call_of(d, "linear").update(target=target))
    with pytest.raises(UsageError, match=f"holds a call of '{target}'"):
        planish.capture(rewritten(pt2, change))


def test_an_expression_that_is_code_is_refused(pt2, tmp_path):
    trace = tmp_path / "trace"

    def poison(value):
        if isinstance(value, dict):
            if "expr_str" in value:
                value["expr_str"] = f"open('{trace}', 'w')"
            for inner in value.values():
                poison(inner)
        elif isinstance(value, list):
            for inner in value:
                poison(inner)

    with pytest.raises(UsageError, match="holds the symbolic expression"):
        planish.capture(rewritten(pt2, edit_json("models/model.json", poison)))
    assert not trace.exists()


def test_a_container_that_imports_a_module_is_refused(pt2):
    spec = json.dumps(
        [1, {"type": "builtins.dict", "context": json.dumps([{"__enum__": True, "fqn": "antigravity:X"}])}]
    )

    def poison(document):
        document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec

    with pytest.raises(UsageError, match="a container that imports a module"):
        planish.capture(rewritten(pt2, edit_json("models/model.json", poison)))


def test_broken_archives_are_refused(pt2):
    content = pt2.read_bytes()
    pt2.write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"is not a zip archive|not a readable \.pt2"):
        planish.capture(pt2)


def test_a_zip_of_something_else_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
    (tmp_path / "other.pt2").write_bytes(buffer.getvalue())
    with pytest.raises(UsageError, match=r"is not a readable \.pt2 file"):
        planish.capture(tmp_path / "other.pt2")
