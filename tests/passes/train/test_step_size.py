"""The learned step: the forward pass is aten's, bit for bit; gradients are the paper's, in float64 closed form."""

import math

import pytest
import torch

from planish.passes.train.step_size import Step, learned_step

UNIT = torch.tensor(1.0)


def of_activations(value, scale, zero_point, low, high, batched=False, unit=UNIT):
    """(result, gradient of the value, gradient of the latent) for the sum of result * weight."""
    value, latent = value.clone().requires_grad_(), scale.clone().requires_grad_()
    result = learned_step(value, latent, scale, zero_point, unit, low, high, None, batched)
    weight = weights_like(result)
    (result * weight).sum().backward()
    return result.detach(), value.grad, latent.grad


def weights_like(value):
    return torch.linspace(-1, 2, value.numel()).reshape(value.shape)


def closed_form(value, scale, zero_point, low, high, weight):
    """Equations 1 to 3 of arXiv:1902.08153 with a zero point, in float64: (gradient of the value, of the scale).

    Inside is where the rounded level is: half a step more at either end than in the paper, as aten's mask has it.
    """
    steps = value.double() / scale.double()
    level = steps.round() + zero_point
    inside = (level >= low) & (level <= high)
    ends = torch.where(level < low, low - zero_point, high - zero_point).double()
    return weight.double() * inside, weight.double() * torch.where(inside, steps.round() - steps, ends)


@pytest.mark.parametrize(
    ("zero_point", "low", "high"), [(0, -128, 127), (-128, -128, 127), (5, 0, 255), (3, 0, 7), (-1, -2, 1)]
)
def test_the_gradient_of_an_activation_is_the_papers(zero_point, low, high):
    scale, zero = torch.tensor(0.0625), torch.tensor(zero_point, dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    reach = 0.0625 * (high - low)
    value = reach * torch.randn(4, 5, 6, generator=generator)
    result, to_value, to_scale = of_activations(value, scale, zero, low, high)
    assert torch.equal(result, torch.fake_quantize_per_tensor_affine(value, scale, zero, low, high))
    wanted_value, wanted_scale = closed_form(value, scale, zero_point, low, high, weights_like(value))
    assert 0 < float(to_value.count_nonzero()) < value.numel()  # values on both sides of the ends
    assert torch.equal(to_value.double(), wanted_value)
    factor = 1 / math.sqrt(value.numel() * max(high - zero_point, zero_point - low))
    # float32 sums of 120 terms against float64
    assert float(to_scale) == pytest.approx(factor * float(wanted_scale.sum()), rel=1e-4, abs=1e-5)


def test_half_way_between_levels_the_gradient_follows_the_forward_pass():
    """aten's own learnable quantizer takes another level in its backward pass than in its forward pass there."""
    scale, zero = torch.tensor(0.5), torch.tensor(1, dtype=torch.int32)
    for value in (0.25, 0.75, 1.25, -0.25):
        result, _, to_scale = of_activations(torch.tensor([value]), scale, zero, -128, 127)
        weight = float(weights_like(result)[0])
        expected = weight * (float(result) - value) / 0.5 / math.sqrt(129)  # -128 is 129 levels from the zero point
        assert float(to_scale) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("axis", "shape"), [(0, (6, 4, 3, 3)), (1, (4, 6, 3))])
def test_the_gradient_of_a_weight_is_the_papers_for_each_channel(axis, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.1, 0.6, 6)
    zero = torch.zeros(6, dtype=torch.int32)
    value, latent = weight.clone().requires_grad_(), scale.clone().requires_grad_()
    result = learned_step(value, latent, scale, zero, torch.ones(6), -3, 3, axis, False)
    assert torch.equal(result, torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -3, 3))
    factor = weights_like(result)
    (result * factor).sum().backward()
    along = scale.reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])
    wanted_value, wanted_scale = closed_form(weight, along, 0, -3, 3, factor)
    assert torch.equal(value.grad.double(), wanted_value)
    others = [dim for dim in range(weight.ndim) if dim != axis]
    expected = wanted_scale.sum(others) / math.sqrt(weight.numel() / 6 * 3)
    torch.testing.assert_close(latent.grad.double(), expected, rtol=1e-4, atol=1e-5)  # float32 sums


def test_samples_are_not_counted_and_units_multiply():
    value, scale, zero = torch.randn(8, 5), torch.tensor(0.125), torch.tensor(0, dtype=torch.int32)
    plain = of_activations(value, scale, zero, -4, 3)[2]
    assert float(of_activations(value, scale, zero, -4, 3, batched=True)[2] / plain) == pytest.approx(math.sqrt(8))
    unit = torch.tensor(0.25)
    assert torch.equal(of_activations(value, scale, zero, -4, 3, unit=unit)[2], 0.25 * plain)


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_scalars_and_empty_values_have_a_gradient_scale(shape):
    step = Step(-128, 127, batched=bool(shape))
    expected = 1 / math.sqrt((3 if shape else 1) * 128)
    assert float(step.gradient_scale(shape, torch.tensor(0))) == pytest.approx(expected)


def test_under_autocast_it_computes_in_float32():
    value, scale, zero = torch.randn(4, 4), torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        result = learned_step(
            value.bfloat16(), scale.clone().requires_grad_(), scale, zero, UNIT, -128, 127, None, True
        )
    assert result.dtype == torch.float32
    expected = torch.fake_quantize_per_tensor_affine(value.bfloat16().float(), scale, zero, -128, 127)
    assert torch.equal(result.detach(), expected)
