"""Linear layers and LSTMs whose activations are quantized as they come: the scale is that of each tensor at run time.

    low, high   = min(0, least of x), max(0, greatest of x)
    scale       = f32(f32(high - low) / 255), at least 2**-60, rounded up to 10 significant bits
    zero_point  = clamp(-128 + rint(f32(-low / scale)), -128, 127)
    q           = clamp(rint(f32(x / scale)) + zero_point, -128, 127)
    sum         = sum of (q - zero_point) * weight, in int32
    y           = f32(f64(f32(sum)) * f64(f32(scale * weight_scale)) + f64(bias))

All in float32 but for the last line: a product of two float32 numbers is exact in float64, so that it does not matter
whether a machine fuses it with the sum behind. Weights are int8 without zero point, one scale per output. Inputs must
be finite.

Source: Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, 2018, arXiv:1806.08342 (section
2.1, the affine quantizer); what it does is what PyTorch calls dynamic quantization.
"""

import torch
from torch.nn import functional

LINEAR_DYNAMIC = "linear_dynamic"
LSTM_DYNAMIC = "lstm_dynamic"
LOW, HIGH = -128, 127
SMALLEST_SCALE = 2.0**-60
# float32 has 23 bits behind the leading one; of these 9 stay.
DROPPED_BITS = 14


def dynamic_grid(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of a tensor, both float32 []. One without elements has the smallest scale."""
    if not x.numel():
        return x.new_full((), SMALLEST_SCALE), x.new_full((), float(LOW))
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = _shortened(((high - low) / (HIGH - LOW)).clamp(min=SMALLEST_SCALE))
    return scale, (LOW + torch.round(-low / scale)).clamp(LOW, HIGH)


def _shortened(scale: torch.Tensor) -> torch.Tensor:
    """The next float32 number up that has 10 significant bits."""
    mask = (1 << DROPPED_BITS) - 1
    return ((scale.view(torch.int32) + mask) & ~mask).view(torch.float32)


@torch.library.custom_op("planish::linear_dynamic", mutates_args=())
def linear_dynamic(
    input: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """y as above. input: float32 [..., I]; weight: int8 [O, I]; weight_scale, bias: float32 [O]."""
    return _linear(input, weight, weight_scale, bias)


@linear_dynamic.register_fake
def _(input, weight, weight_scale, bias):
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@torch.library.custom_op("planish::lstm_dynamic", mutates_args=())
def lstm_dynamic(
    input: torch.Tensor,
    state: list[torch.Tensor],
    weights: list[torch.Tensor],
    scales: list[torch.Tensor],
    biases: list[torch.Tensor],
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An LSTM as torch.nn.LSTM computes it, its products dynamic: that of the inputs for the whole sequence at once,
    that of the state for each step. Returns the outputs, and the last hidden and cell state.

    input             float32 [steps, batch, I], or [batch, steps, I] if batch_first; without batch dim [steps, I]
    state             (h, c), float32 [layers * directions, batch, H]
    weights           int8 [4 H, I] and [4 H, H] of each layer and direction; scales and biases (or none): [4 H]
    """
    batched = input.ndim == 3
    x = input if batched else input.unsqueeze(1)
    x = x.transpose(0, 1) if batch_first and batched else x
    directions = 2 if bidirectional else 1
    hidden, cells = [], []
    for layer in range(len(weights) // (2 * directions)):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            two = slice(2 * number, 2 * number + 2)
            held = weights[two], scales[two], biases[two] if biases else [None, None]
            start = [each[number] if batched else each[number].unsqueeze(0) for each in state]
            steps, h, c = _one_direction(x.flip(0) if direction else x, start, *held)
            outputs.append(steps.flip(0) if direction else steps)
            hidden.append(h if batched else h.squeeze(0))
            cells.append(c if batched else c.squeeze(0))
        x = torch.cat(outputs, -1)
    x = x.transpose(0, 1).contiguous() if batch_first and batched else x
    return (x if batched else x.squeeze(1)).clone(), torch.stack(hidden), torch.stack(cells)


@lstm_dynamic.register_fake
def _(input, state, weights, scales, biases, bidirectional, batch_first):
    wide = state[0].shape[-1] * (2 if bidirectional else 1)
    return input.new_empty((*input.shape[:-1], wide)), torch.empty_like(state[0]), torch.empty_like(state[1])


def _one_direction(
    x: torch.Tensor, state: list[torch.Tensor], weights: list, scales: list, biases: list
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[steps, batch, H] and the last h and c of one layer in one direction."""
    h, c = state
    entering, outputs = _linear(x, weights[0], scales[0], biases[0]), []
    for step in entering:
        gates = step + _linear(h, weights[1], scales[1], biases[1])
        into, forget, new, out = gates.chunk(4, -1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(into) * torch.tanh(new)
        h = torch.sigmoid(out) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs), h, c


def _linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    own, zero_point = dynamic_grid(x)
    steps = torch.round(x / own).clamp(LOW - zero_point, HIGH - zero_point)
    sums = functional.linear(steps.double(), weight.double()).float()
    y = sums.double() * (own * scale).double()
    return (y if bias is None else y + bias.double()).float()
