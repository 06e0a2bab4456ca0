import pytest
import torch
from torch import fx, nn

import planish
from planish.ir.errors import CaptureError, UsageError
from planish.ir.ops import op_name
from planish.ir.verify import verify


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4, 5)
        self.register_buffer("scale", torch.full((5,), 1.5), persistent=False)
        self.conv.weight.requires_grad_(False)
        nn.init.normal_(self.bn.running_mean)

    def forward(self, x):
        x = self.drop(torch.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3))) * self.scale


def small():
    return Small().eval()


def image(batch=2):
    return torch.randn(batch, 3, 8, 8)


def ways_in(model, folder):
    """The same model through every door."""
    dims = {"x": {0: torch.export.Dim.AUTO}}
    program = torch.export.export(model, (image(),), dynamic_shapes=dims)
    torch.export.save(program, folder / "model.pt2")
    planish.capture(model, image()).save(folder / "model.planish")
    return {
        "module": lambda: planish.capture(model, image()),
        "fx": lambda: planish.capture(fx.symbolic_trace(model), (image(),)),
        "program": lambda: planish.capture(program),
        "pt2": lambda: planish.capture(folder / "model.pt2"),
        "saved": lambda: planish.capture(str(folder / "model.planish")),
        "graph": lambda: planish.capture(planish.capture(model, image())),
    }


@pytest.mark.parametrize("way", ["module", "fx", "program", "pt2", "saved", "graph"])
def test_every_way_in_gives_the_same_graph(way, tmp_path):
    model = small()
    graph = ways_in(model, tmp_path)[way]()
    verify(graph)
    assert [spec.shape for spec in graph.inputs] == [("b", 3, 8, 8)]
    assert [spec.shape for spec in graph.outputs] == [("b", 5)]
    assert {n: t.requires_grad for n, t in graph.parameters.items()} == {
        name: parameter.requires_grad for name, parameter in model.named_parameters()
    }
    x = image(5)
    # fx.symbolic_trace keeps the order of operations too, so every way gives the same bits.
    torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)


def test_checkpoints_load_strictly_by_name():
    model = small()
    graph = planish.capture(model, image())
    other = small()
    nn.init.normal_(other.fc.weight)
    graph.module.load_state_dict(other.state_dict(), strict=True)
    x = image()
    torch.testing.assert_close(graph(x), other(x), rtol=0, atol=0)
    assert list(graph.copy().module.state_dict()) == list(graph.module.state_dict())


def test_the_graph_shares_no_tensor_with_the_model():
    model = small()
    graph = planish.capture(model, image())
    theirs = {t.data_ptr() for t in model.state_dict().values()}
    assert not theirs & {t.data_ptr() for t in graph.weights.values()}


def test_capture_is_in_eval_form_and_leaves_the_models_flags_alone():
    model = small().train()
    model.bn.eval()
    flags = [m.training for m in model.modules()]
    graph = planish.capture(model, image())
    assert [m.training for m in model.modules()] == flags
    assert not graph.module.training
    x = image()
    torch.testing.assert_close(graph(x), model.eval()(x), rtol=0, atol=0)


def test_a_program_exported_in_training_form_comes_in_eval_form():
    model = small().train()
    graph = planish.capture(torch.export.export(model, (image(),)))
    x = image()
    torch.testing.assert_close(graph(x), model.eval()(x), rtol=0, atol=0)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1) + torch.arange(2.0)[:, None]


def test_a_model_that_refuses_a_dynamic_batch_is_captured_with_a_fixed_one():
    graph = planish.capture(FixedBatch(), torch.randn(2, 6))
    assert graph.inputs[0].shape == (2, 6)
    with pytest.raises(UsageError, match=r"expected x : f32\[2,6\]"):
        graph(torch.randn(3, 6))


def test_dynamic_batch_can_be_turned_off():
    assert planish.capture(small(), image(), dynamic_batch=False).inputs[0].shape == (2, 3, 8, 8)


def test_two_dynamic_extents_survive():
    dims = {"x": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    model = small()
    graph = planish.capture(torch.export.export(model, (torch.randn(2, 3, 8, 12),), dynamic_shapes=dims))
    assert graph.inputs[0].shape == ("b", 3, "s1", "s2")
    x = torch.randn(3, 3, 16, 10)
    torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)


class Choosy(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line that the message names
            return x + 1
        return x


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Choosy()

    def forward(self, x):
        return self.inner(x * 2)


def test_data_dependent_control_flow_names_the_source_line(capfd):
    with pytest.raises(CaptureError) as caught:
        planish.capture(Wrapper(), torch.randn(2, 4))
    line = Choosy.forward.__code__.co_firstlineno + 1
    assert f"test_capture.py:{line}" in str(caught.value)
    assert "`if x.sum() > 0:" in str(caught.value)
    assert caught.value.exit_code == 2
    assert capfd.readouterr() == ("", "")  # torch's own dumps of the graph stay away


def test_a_shape_error_names_the_line_and_the_sizes():
    with pytest.raises(CaptureError, match=r"\[2, 5\] X \[4, 3\]"):
        planish.capture(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: planish.capture(42), "the model is a int"),
        (lambda folder: planish.capture(nn.Linear(2, 2)), "no example inputs were given"),
        (lambda folder: planish.capture(folder / "none.pt2"), "there is no file"),
        (lambda folder: planish.capture(folder), "is not a zip archive"),
    ],
)
def test_wrong_calls_are_refused(call, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        call(tmp_path)


def test_a_dynamic_number_as_input_is_refused():
    class Scaled(nn.Module):
        def forward(self, x, k):
            return x * k

    dims = {"x": None, "k": torch.export.Dim.DYNAMIC}
    program = torch.export.export(Scaled(), (torch.randn(2), 3), dynamic_shapes=dims)
    with pytest.raises(CaptureError, match="input 'k' is a dynamic number"):
        planish.capture(program)


def test_related_extents_are_refused():
    class Joined(nn.Module):
        def forward(self, x, y):
            return x.repeat(2, 1) + y

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Joined(), (torch.randn(4, 3), torch.randn(8, 3)), dynamic_shapes={"x": {0: batch}, "y": {0: 2 * batch}}
    )
    with pytest.raises(CaptureError, match="input 'y' has the derived extent"):
        planish.capture(program)


def test_no_grad_regions_are_inlined():
    class Region(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                y = x * 2
            return y + 1

    graph = planish.capture(Region(), torch.randn(2, 3))
    assert [op_name(node) for node in graph.nodes if node.op == "call_function"] == ["mul", "add"]


def test_source_lines_are_recorded():
    graph = planish.capture(small(), image())
    line = Small.forward.__code__.co_firstlineno + 2
    assert graph.node("mean").meta["source"] == f"test_capture.py:{line}"


def test_the_batch_is_dynamic_where_forward_collects_its_inputs():
    class Sum(nn.Module):
        def forward(self, *tensors, scale=None):
            return torch.relu(sum(tensors))

    x = torch.randn(2, 4)
    graph = planish.capture(Sum(), (x, x + 1))
    assert [spec.shape for spec in graph.inputs] == [("b", 4), ("b", 4)]
    five = torch.randn(5, 4)
    assert torch.equal(graph(five, five), torch.relu(five + five))
