"""torch.compile, call after call: memory, weights that change, training, other sizes, several threads."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_compile_cases import TOLERANCE, Calls, Convolutions, TransformerBlock, eager_ops, run

import planish
from planish.backends import torch_compile

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_in_place_ops_on_a_value_of_its_own():
    model = Calls(lambda m, x: m.last(m.first(x).relu_().add_(1).mul_(2)), first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    _, (report,) = run(model, torch.randn(3, 8))
    assert not report.eager


def test_writes_into_shared_memory_stay_in_pytorch():
    def assign(m, x):
        y = m.first(x)
        y[:, 0] = 3
        return m.last(y)

    model = Calls(assign, first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    _, (report,) = run(model, torch.randn(3, 8))
    assert "writes in place" in " ".join(report.reasons)
    assert "aten.linear.default" in eager_ops([report])


def test_a_write_into_an_input_reaches_the_caller():
    model = Calls(lambda m, x: m.first(x.add_(1)), first=nn.Linear(8, 8))
    x = torch.zeros(3, 8)
    with torch.no_grad():
        torch.compile(model, backend="planish")(x)
    assert torch.equal(x, torch.ones(3, 8))


def test_returned_views_share_memory_as_in_pytorch():
    model = Calls(lambda m, x: (x.view(4, 2, 4), (y := m.first(x)), y.t()), first=nn.Linear(8, 8))
    x = torch.randn(4, 8)
    with torch.no_grad():
        of_input, value, transposed = torch.compile(model, backend="planish")(x)
    assert of_input.data_ptr() == x.data_ptr()
    assert value.data_ptr() == transposed.data_ptr() and not transposed.is_contiguous()


def test_outputs_are_not_overwritten_by_the_next_call():
    model = Convolutions()
    compiled, _ = run(model, torch.randn(2, 3, 16, 16))
    with torch.no_grad():
        first = compiled(torch.ones(2, 3, 16, 16))
        kept = first.clone()
        first.add_(0)  # outputs are ordinary tensors that may be written to
        for seed in range(3):
            compiled(torch.full((2, 3, 16, 16), float(seed)))
    assert torch.equal(first, kept)


def test_a_constant_output_is_new_at_each_call():
    model: Any = Calls(lambda m, x: (m.first(x), m.first.weight * 2), first=nn.Linear(4, 4))
    compiled = torch.compile(model, backend="planish")
    with torch.no_grad():
        compiled(torch.ones(2, 4))[1].zero_()
        torch.testing.assert_close(compiled(torch.ones(2, 4))[1], model.first.weight * 2, rtol=0, atol=0)


def test_a_new_batch_size_needs_one_more_build():
    model = Convolutions()
    compiled, first = run(model, torch.randn(2, 3, 16, 16))
    _, second = run(model, torch.randn(5, 3, 16, 16), compiled=compiled)
    _, third = run(model, torch.randn(9, 3, 16, 16), compiled=compiled)
    assert [len(reports) for reports in (first, second, third)] == [1, 1, 0]


def test_new_image_sizes_are_built_as_they_come():
    model = Convolutions()
    compiled = torch.compile(model, backend="planish", dynamic=True)
    for size in (16, 18, 16):
        run(model, torch.randn(2, 3, size, size), compiled=compiled)


def test_inputs_that_are_not_contiguous_or_not_aligned():
    model = Calls(lambda m, x: (m.first(x), x.exp() + x.tanh()), first=nn.Linear(8, 8))
    compiled, _ = run(model, torch.randn(8, 5).t())
    run(model, torch.randn(41)[1:].view(5, 8), compiled=compiled)


def test_changed_weights_are_seen_at_once_and_compiled_when_they_settle():
    model = Convolutions()
    x = torch.randn(2, 3, 16, 16)
    compiled, _ = run(model, x)
    model.load_state_dict({name: value * 0.9 for name, value in model.state_dict().items()})
    built = [len(run(model, x, compiled=compiled)[1]) for _ in range(torch_compile.SETTLED_CALLS + 1)]
    assert built == [0] * (torch_compile.SETTLED_CALLS - 1) + [1, 0]
    model.head.weight.data = torch.zeros(5, 16)
    run(model, x, compiled=compiled)


def test_weights_that_change_at_every_call_are_never_compiled_again():
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    compiled, _ = run(model, torch.randn(2, 8))
    for _ in range(6):
        with torch.no_grad():
            model[0].weight.mul_(0.9)
        assert run(model, torch.randn(2, 8), compiled=compiled)[1] == []


def test_two_models_of_one_class_keep_their_own_weights():
    first, second = TransformerBlock(), TransformerBlock()
    x = torch.randn(1, 4, 32)
    compiled = [torch.compile(model, backend="planish") for model in (first, second)]
    for model, fast in zip((first, second, first), (*compiled, compiled[0]), strict=True):
        run(model, x, compiled=fast)


def test_a_training_step_gives_the_gradients_of_pytorch():
    model: Any = Convolutions().train()
    compiled = torch.compile(model, backend="planish")
    x, state = torch.randn(4, 3, 16, 16), {k: v.clone() for k, v in model.state_dict().items()}
    compiled(x).square().sum().backward()
    actual = {name: p.grad.clone() for name, p in model.named_parameters()}
    statistics = model.norm1.running_mean.clone()
    model.zero_grad()
    model.load_state_dict(state)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad, rtol=0, atol=0)  # the same code computes both
    assert torch.equal(statistics, model.norm1.running_mean)
    assert "a gradient may be needed" in " ".join(planish.reports()[-1].reasons)


def test_training_mode_without_gradients_stays_in_pytorch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    x, before = torch.randn(2, 3, 8, 8), len(planish.reports())
    with torch.no_grad():
        torch.compile(model, backend="planish")(x)
    assert model[1].num_batches_tracked == 1
    assert "training mode" in " ".join(planish.reports()[before].reasons)


def test_random_calls_draw_from_pytorch():
    model = Calls(lambda m, x: m.first(x) + torch.rand(3, 8), first=nn.Linear(8, 8))
    compiled, x = torch.compile(model, backend="planish"), torch.randn(3, 8)
    with torch.no_grad():
        compiled(x)
        torch.manual_seed(5)
        actual = compiled(x)
        torch.manual_seed(5)
        torch.testing.assert_close(actual, model(x), **TOLERANCE)


def test_weights_made_in_inference_mode_stay_in_pytorch():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
        before = len(planish.reports())
        torch.compile(model, backend="planish")(torch.ones(2, 8))
    assert "inference_mode" in " ".join(planish.reports()[before].reasons)


def test_calls_from_two_threads():
    model = Convolutions()
    compiled, _ = run(model, torch.randn(2, 3, 16, 16))
    inputs = [torch.full((2, 3, 16, 16), float(i)) for i in range(2)]
    wrong = []

    def work(x: Tensor) -> None:
        with torch.no_grad():
            expected = model(x)
            wrong.extend(i for i in range(20) if not torch.allclose(compiled(x), expected, **TOLERANCE))

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
