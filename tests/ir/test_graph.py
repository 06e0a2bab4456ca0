import copy

import pytest
import torch
from torch import nn

import planish
from planish.ir import rewrite
from planish.ir.errors import UsageError


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, named, pair, scale=2, *, extra=None):
        y = self.fc(named["x"]) * scale + pair[0] * pair[1][0]
        return {"y": y if extra is None else y + extra, "parts": (y.sum(1), [y * 2])}


def nested_call(batch):
    return ({"x": torch.randn(batch, 4)}, (torch.randn(batch, 3), [torch.randn(batch, 3)])), {}


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def same(actual, expected):
    # The graph runs the very ops of the model, so the bits agree.
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_nested_inputs_and_outputs_keep_their_form():
    model = Nested().eval()
    graph = planish.capture(model, nested_call(2)[0])
    args, kwargs = nested_call(5)
    same(graph(*args, **kwargs), model(*args, **kwargs))
    same(graph(pair=args[1], named=args[0]), model(*args))
    assert [(spec.name, spec.shape) for spec in graph.inputs] == [
        ("named_x", ("b", 4)),
        ("pair_0", ("b", 3)),
        ("pair_1_0", ("b", 3)),
    ]


def test_call_arguments_nest_flat_tensors():
    model = Nested().eval()
    graph = planish.capture(model, nested_call(2)[0])
    tensors = graph.example_inputs(batch=3)
    args, kwargs = graph.call_arguments(tensors)
    same(graph.module(*args, **kwargs), model({"x": tensors[0]}, (tensors[1], [tensors[2]])))


def test_exported_program_of_nested_inputs_keeps_the_dynamic_batch():
    model = Nested().eval()
    program = planish.capture(model, nested_call(2)[0]).exported_program()
    args, _ = nested_call(7)
    same(program.module()(*args), model(*args))


def test_constants_are_kept_and_checked():
    model = Nested().eval()
    args, _ = nested_call(2)
    graph = planish.capture(model, (*args, 3))
    same(graph(*args, 3), model(*args, 3))
    assert len(graph.example_inputs()) == 3
    same(graph.exported_program().module()(*args, 3), model(*args, 3))
    with pytest.raises(UsageError, match="input 'scale' is 4; it was captured as 3"):
        graph(*args, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, x: g(), "argument 'input' is missing; the model takes input"),
        (lambda g, x: g(x, x), "2 arguments were given"),
        (lambda g, x: g(x, input=x), "argument 'input' is given twice"),
        (lambda g, x: g(y=x), "argument 'y' is unknown"),
        (lambda g, x: g((x, x)), "nested in another way"),
        (lambda g, x: g(x[:, :3]), r"input 'input_1' is f32\[2,3\]; expected input_1 : f32\[b,4\]"),
        (lambda g, x: g(x.double()), r"input 'input_1' is f64\[2,4\]"),
        (lambda g, x: g(x[:0]), r"is f32\[0,4\]"),
        (lambda g, x: g([1, 2]), "nested in another way"),
        (lambda g, x: g("x"), "input 'input_1' is a str"),
    ],
)
def test_wrong_calls_are_refused(call, message):
    graph = planish.capture(tied(), torch.randn(2, 4))
    with pytest.raises(UsageError, match=message):
        call(graph, torch.randn(2, 4))


def test_two_inputs_must_have_the_same_batch():
    graph = planish.capture(nn.Bilinear(4, 4, 3), (torch.randn(2, 4), torch.randn(2, 4)))
    with pytest.raises(UsageError, match="input 'input2'"):
        graph(torch.randn(3, 4), torch.randn(2, 4))


def test_ties_stay_one_parameter_through_copy_and_set_weight():
    graph = planish.capture(tied(), torch.randn(2, 4)).copy()
    first, second = graph.module.get_parameter("0.weight"), graph.module.get_parameter("2.weight")
    assert first is second
    rewrite.set_weight(graph, "0.weight", torch.ones(4, 4))
    assert graph.module.get_parameter("0.weight") is graph.module.get_parameter("2.weight")
    assert len(graph.parameters) == 3
    x = torch.randn(3, 4)
    reference = tied()
    reference.load_state_dict(graph.module.state_dict())
    same(graph(x), reference(x))


def test_a_copy_shares_nothing():
    graph = planish.capture(tied(), torch.randn(2, 4))
    twin = graph.copy()
    with torch.no_grad():
        twin.weight("0.bias").fill_(7)
    twin.properties.add("fake-quant")
    assert not bool((graph.weight("0.bias") == 7).any())
    assert not graph.properties
    shared = {t.data_ptr() for t in graph.weights.values()} & {t.data_ptr() for t in twin.weights.values()}
    assert not shared


def test_weight_readers_see_through_ties():
    graph = planish.capture(tied(), torch.randn(2, 4))
    assert [node.name for node in graph.weight_readers("0.weight")] == ["linear", "linear_1"]


def test_train_and_eval_flip_the_ops_and_the_graph_learns():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    graph = planish.capture(model, torch.randn(2, 3, 6, 6))
    x = torch.randn(4, 3, 6, 6)
    same(graph(x), model(x))
    before = graph.weight("1.running_mean").clone()
    graph.train()
    assert graph.module.training
    graph(x).sum().backward()
    assert graph.weight("0.weight").grad is not None
    assert not torch.equal(graph.weight("1.running_mean"), before)
    model.train()
    model(x)
    same(graph.weight("1.running_mean"), model[1].running_mean)
    graph.eval()
    same(graph(x), model.eval()(x))


def test_the_module_can_be_deep_copied_and_still_trains():
    graph = planish.capture(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), torch.randn(2, 4))
    twin = copy.deepcopy(graph.module).train()
    assert "train = True" in twin.code or ", True)" in twin.code
    assert not graph.module.training


def test_example_inputs_are_seeded():
    graph = planish.capture(tied(), torch.randn(2, 4))
    (a,), (b,), (c,) = graph.example_inputs(3), graph.example_inputs(3), graph.example_inputs(3, seed=1)
    assert a.shape == (3, 4)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_node_and_calls_find_nodes():
    graph = planish.capture(tied(), torch.randn(2, 4))
    assert graph.node("linear_1") is graph.calls("linear")[1]
    with pytest.raises(KeyError):
        graph.node("nothing")
