"""Every op rule: random removals under two seeds hold the proof, and enough stays prunable.

`groups` is a floor that was counted by hand: the proof cannot see channels that were frozen for no reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.ir.capture import capture
from planish.ir.verify import verify
from planish.passes.prune.groups import Groups
from planish.passes.prune.index.index_graph import IndexGraph


class Between(nn.Module):
    """A conv that makes channels, the op under test, and a conv that reads them."""

    def __init__(self, channels: int, op, read: int | None = None, rank: int = 2):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.before = conv(3, channels, 3, padding=1)
        self.op = op
        self.after = conv(read or channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.op(self.before(x)))


class Op(nn.Module):
    """A function as a module, with submodules and buffers of its own."""

    def __init__(self, function, **parts: nn.Module | Tensor):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self, *args)


class Sequence(nn.Module):
    """A linear layer that makes features, the op under test, and a linear layer that reads them."""

    def __init__(self, features: int, op, read: int | None = None):
        super().__init__()
        self.before, self.op, self.after = nn.Linear(6, features), op, nn.Linear(read or features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.op(self.before(x)))


class FakeQuantized(nn.Module):
    """A conv with a per-channel weight quantizer and a per-tensor activation quantizer."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 6, 3)
        self.register_buffer("scale", torch.rand(6) * 0.01 + 0.01)
        self.register_buffer("zero_point", torch.zeros(6, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.fake_quantize_per_channel_affine(self.conv.weight, self.scale, self.zero_point, 0, -127, 127)
        return F.conv2d(torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127), weight, self.conv.bias)


class Attention(nn.Module):
    def __init__(self, wide: int, heads: int, key_heads: int, by_hand: bool = False):
        super().__init__()
        size = wide // heads
        self.heads, self.key_heads, self.size, self.by_hand = heads, key_heads, size, by_hand
        self.query, self.out = nn.Linear(6, wide), nn.Linear(wide, 6)
        self.key, self.value = nn.Linear(6, key_heads * size), nn.Linear(6, key_heads * size)

    def forward(self, x: Tensor) -> Tensor:
        b, length, _ = x.shape
        q = self.query(x).view(b, length, self.heads, self.size).transpose(1, 2)
        k = self.key(x).view(b, length, self.key_heads, self.size).transpose(1, 2)
        v = self.value(x).view(b, length, self.key_heads, self.size).transpose(1, 2)
        if self.by_hand:
            y = torch.softmax(q @ k.transpose(-1, -2) * self.size**-0.5, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads != self.key_heads)
        return x + self.out(y.transpose(1, 2).reshape(b, length, self.heads * self.size))


def settled(module: nn.Module) -> nn.Module:
    """Running statistics and affine parameters that differ by channel."""
    for part in module.modules():
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if tensor.is_floating_point() and ("running" in name or "Norm" in type(part).__name__):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return module


def by_hand(module: nn.Module, x: Tensor) -> Tensor:
    """Channel shuffle as ShuffleNet writes it."""
    b, c, h, w = x.shape
    return x.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


@dataclass
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: int


IMAGE, SEQUENCE = (3, 8, 8), (5, 6)


def image(channels: int, op, groups: int, read: int | None = None) -> Case:
    return Case(lambda: Between(channels, op() if isinstance(op, type) else op, read), IMAGE, groups)


def recurrent(module: nn.Module, groups: int, read: int) -> Case:
    return Case(lambda: Sequence(8, Op(lambda m, x: m.cell(x)[0], cell=module), read), SEQUENCE, groups)


CASES = {
    # conv
    "conv1d": Case(lambda: Between(8, nn.Conv1d(8, 6, 3), 6, rank=1), (3, 9), 14),
    "conv3d": Case(lambda: Between(8, nn.Conv3d(8, 6, 2), 6, rank=3), (3, 4, 4, 4), 14),
    "conv same padding": image(8, nn.Conv2d(8, 6, 3, padding="same"), 14, 6),
    "resnext": image(
        12, nn.Sequential(nn.Conv2d(12, 12, 3, groups=3), nn.BatchNorm2d(12), nn.ReLU(), nn.GroupNorm(3, 12)), 8
    ),
    "grouped conv": image(12, nn.Conv2d(12, 6, 3, groups=3), 6, 6),
    "grouped conv, many groups": image(12, nn.Conv2d(12, 24, 3, groups=6), 6, 24),
    "depthwise": image(8, nn.Conv2d(8, 8, 3, groups=8), 8),
    "depthwise, multiplier 3": image(8, nn.Conv2d(8, 24, 3, groups=8), 8, 24),
    "transposed conv": image(8, nn.ConvTranspose2d(8, 6, 2, stride=2), 14, 6),
    "grouped transposed conv": image(12, nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4), 5, 8),
    "depthwise transposed conv": image(8, nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8, bias=False), 8),
    "transposed conv1d": Case(lambda: Between(8, nn.ConvTranspose1d(8, 6, 3), 6, rank=1), (3, 9), 14),
    # linear and products
    "linear on a sequence": Case(lambda: Sequence(8, nn.Linear(8, 7, bias=False), 7), SEQUENCE, 15),
    "matmul with a weight": Case(
        lambda: Sequence(8, Op(lambda m, x: torch.matmul(x, m.w.weight), w=nn.Linear(7, 8)), 7), SEQUENCE, 15
    ),
    "addmm": Case(
        lambda: Sequence(8, Op(lambda m, x: torch.addmm(m.w.bias, x, m.w.weight.t()), w=nn.Linear(8, 7)), 7), (6,), 15
    ),
    "bmm": Case(lambda: Sequence(8, Op(lambda m, x: torch.bmm(x, torch.bmm(x.mT, x))), 8), SEQUENCE, 8),
    "einsum": Case(
        lambda: Sequence(8, Op(lambda m, x: torch.einsum("bli,io->blo", x, m.w.weight), w=nn.Linear(7, 8)), 7),
        SEQUENCE,
        15,
    ),
    "einsum with dots": Case(
        lambda: Sequence(8, Op(lambda m, x: torch.einsum("...li, ...mi -> ...lm", x, x) @ x)), SEQUENCE, 8
    ),
    "bilinear": Case(lambda: Sequence(8, Op(lambda m, x: m.a(x, x * x), a=nn.Bilinear(8, 8, 7)), 7), SEQUENCE, 15),
    # recurrent
    "lstm": recurrent(nn.LSTM(8, 5, batch_first=True), 13, 5),
    "lstm, two layers, both directions": recurrent(nn.LSTM(8, 5, 2, bidirectional=True, batch_first=True), 13, 10),
    "lstm with a projection": recurrent(nn.LSTM(8, 6, proj_size=4, batch_first=True), 18, 4),
    "lstm without biases": recurrent(nn.LSTM(8, 5, bias=False, batch_first=True), 13, 5),
    "gru": recurrent(nn.GRU(8, 5, 2, bidirectional=True, batch_first=True), 13, 10),
    "rnn": recurrent(nn.RNN(8, 5, nonlinearity="relu", batch_first=True), 13, 5),
    # norms
    "batch norm": image(8, nn.BatchNorm2d(8), 8),
    "batch norm without affine": image(8, nn.BatchNorm2d(8, affine=False), 8),
    "instance norm": image(8, nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 8),
    "group norm": image(12, nn.GroupNorm(3, 12), 4),
    "layer norm": Case(lambda: Sequence(8, nn.LayerNorm(8)), SEQUENCE, 8),
    "rms norm": Case(lambda: Sequence(8, nn.RMSNorm(8)), SEQUENCE, 8),
    "prelu": image(8, nn.PReLU(8), 8),
    "prelu, one slope": image(8, nn.PReLU(), 8),
    # elementwise
    "activations": image(8, Op(lambda m, x: F.hardswish(F.gelu(x)) * torch.sigmoid(x) + F.relu6(x)), 8),
    "broadcast": image(8, Op(lambda m, x: x * x.amax((2, 3), keepdim=True) + 2 - x.new_ones(8, 1, 1)), 8),
    "where": image(8, Op(lambda m, x: torch.where(x > 0, x, x * 0.1)), 8),
    "maximum of two": image(8, Op(lambda m, x: torch.max(x, -x)), 8),
    "residual": image(8, Op(lambda m, x: m.a(x) + x, a=nn.Conv2d(8, 8, 1)), 8),
    "dropout and clone": image(8, Op(lambda m, x: F.dropout2d(x, 0.3, m.training).clone().contiguous()), 8),
    # shape
    "flatten": Case(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5)), IMAGE, 8),
    "view with the batch": Case(
        lambda: Sequence(8, Op(lambda m, x: m.a(x.view(-1, 8)).view(-1, 5, 7), a=nn.Linear(8, 7)), 7), SEQUENCE, 15
    ),
    "symbolic product": Case(
        lambda: Sequence(8, Op(lambda m, x: x.mT.reshape(x.shape[0] * 8, 5).reshape(x.shape[0], 8, 5).mT)), SEQUENCE, 8
    ),
    "unflatten": image(12, Op(lambda m, x: x.unflatten(1, (3, 4)).flatten(1, 2)), 4),
    "permute": Case(
        lambda: Between(8, Op(lambda m, x: m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=nn.Linear(8, 6)), 6),
        IMAGE,
        14,
    ),
    "transpose": Case(lambda: Sequence(8, Op(lambda m, x: x.transpose(1, 2).swapaxes(1, 2))), SEQUENCE, 8),
    "squeeze": image(8, Op(lambda m, x: x.mean((2, 3)).unsqueeze(2).squeeze(2).unsqueeze(-1).unsqueeze(-1)), 8),
    "expand": image(8, Op(lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, 8, 8, 8) * x), 8),
    "repeat": image(8, Op(lambda m, x: x.repeat(1, 2, 1, 1)), 8, 16),
    "repeat interleave": image(8, Op(lambda m, x: x.repeat_interleave(3, 1)), 8, 24),
    # combine
    "cat": image(8, Op(lambda m, x: torch.cat([x, m.a(x), x], 1), a=nn.Conv2d(8, 6, 1)), 14, 22),
    "cat of rows": image(8, Op(lambda m, x: torch.cat([x, m.a(x)], 2), a=nn.Conv2d(8, 8, 1)), 8),
    "stack": image(8, Op(lambda m, x: torch.stack([x, -x], 2).sum(2)), 8),
    "split": image(12, Op(lambda m, x: torch.cat(x.split([2, 7, 3], 1)[::-1], 1)), 12),
    "chunk": image(12, Op(lambda m, x: x.chunk(2, 1)[0] * m.a(x.chunk(2, 1)[1]), a=nn.Conv2d(6, 6, 1)), 12, 6),
    "slice": image(12, Op(lambda m, x: torch.cat([x[:, 8:], x[:, :5], x[:, 3:-4]], 1)), 12, 14),
    "narrow": image(12, Op(lambda m, x: x.narrow(1, 3, 6)), 12, 6),
    "select and flip": image(8, Op(lambda m, x: x.flip(2) + x[:, :, 1:2] + x.select(3, 0).unsqueeze(3)), 8),
    "pad spatial": image(8, Op(lambda m, x: F.pad(F.pad(x, (1, 2, 0, 1)), (1, 1, 1, 1), mode="reflect")), 8),
    "zero-padded shortcut": image(
        8, Op(lambda m, x: m.a(x) + F.pad(x, (0, 0, 0, 0, 3, 5)), a=nn.Conv2d(8, 16, 1)), 16, 16
    ),
    "strided slice": image(8, Op(lambda m, x: x[:, 1::2]), 8, 4),
    "select a channel": image(8, Op(lambda m, x: x * x.select(1, 5).unsqueeze(1) + x[:, -2:-1]), 6),
    "unbind rows": image(8, Op(lambda m, x: torch.stack(x.unbind(2)[::-1], 2)), 8),
    "index select": image(8, Op(lambda m, x: x.index_select(1, m.order), order=torch.tensor([3, 1, 7, 1, 5, 0])), 8, 6),
    "indexed by a constant": image(8, Op(lambda m, x: x[:, m.order], order=torch.tensor([3, 1, 7, 1, 5, 0])), 8, 6),
    "indexed rows and columns": image(
        8, Op(lambda m, x: x[:, :, m.order][..., m.order], order=torch.tensor([3, 1, 7, 1])), 8
    ),
    "flip and roll": image(
        8, Op(lambda m, x: torch.roll(x.flip(1) + x, (3, 2), (1, 2)) * x.flip((2, 3)).amax(1, True)), 4
    ),
    "roll": image(8, Op(lambda m, x: torch.roll(x, -3, 1)), 8),
    "glu": image(8, Op(lambda m, x: F.glu(x, 1)), 4, 4),
    "movedim": image(8, Op(lambda m, x: m.a(x.movedim(1, -1)).movedim((3, 1), (1, 2)), a=nn.Linear(8, 6)), 14, 6),
    # shuffle
    "pixel shuffle": image(8, nn.PixelShuffle(2), 2, 2),
    "pixel unshuffle": image(8, nn.PixelUnshuffle(2), 8, 32),
    "channel shuffle": image(12, nn.ChannelShuffle(3), 12),
    "channel shuffle by hand": image(12, Op(by_hand), 12),
    "shuffle of halves": image(
        12, Op(lambda m, x: by_hand(m, torch.cat([x[:, :6], m.a(x[:, 6:])], 1)), a=nn.Conv2d(6, 6, 1)), 18
    ),
    "unfold and fold": image(8, Op(lambda m, x: F.fold(F.unfold(x, 2), (8, 8), 2)), 8),
    # pool
    "max pool": image(8, nn.MaxPool2d(2), 8),
    "average pools": image(8, nn.Sequential(nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d((3, 2))), 8),
    "interpolate": image(
        8, Op(lambda m, x: F.interpolate(F.interpolate(x, scale_factor=2), (5, 5), mode="bilinear")), 8
    ),
    "mean over channels": image(8, Op(lambda m, x: x - x.mean(1, keepdim=True) * x.amax(1, keepdim=True)), 8),
    "variance over channels": image(8, Op(lambda m, x: x / (x.var(1, keepdim=True) + 1)), 8),
    "sum over space": image(8, Op(lambda m, x: x * x.sum((2, 3), keepdim=True)), 8),
    "grid sample": image(
        8,
        Op(
            lambda m, x: F.grid_sample(x, m.grid.expand(x.shape[0], -1, -1, -1), align_corners=False),
            grid=torch.rand(1, 5, 6, 2),
        ),
        8,
    ),
    "variance and mean": image(8, Op(lambda m, x: sum(torch.var_mean(x, 1, keepdim=True)) * x), 8),
    "cosine similarity": image(8, Op(lambda m, x: x * F.cosine_similarity(x, x * x, 1).unsqueeze(1)), 8),
    # attention
    "attention": Case(lambda: Attention(24, 6, 6), SEQUENCE, 6),
    "grouped-query attention": Case(lambda: Attention(24, 6, 3), SEQUENCE, 3),
    "attention by hand": Case(lambda: Attention(24, 6, 6, by_hand=True), SEQUENCE, 6),
}


@cache
def captured(name: str):
    torch.manual_seed(0)
    return capture(settled(CASES[name].make()).eval(), torch.randn(2, *CASES[name].shape))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_a_random_cut_is_proved_and_runs(name, seed, cut_at_random):
    graph, case = captured(name).copy(), CASES[name]
    outputs = [spec.shape for spec in graph.outputs]
    done = cut_at_random(graph, seed)  # raises where the proof fails
    assert done.index.fenced == {}
    assert done.groups.count >= case.groups
    assert not done.alive.all()
    verify(graph)
    assert [spec.shape for spec in graph.outputs] == outputs
    for batch in (1, 3):
        assert graph(torch.randn(batch, *case.shape)).shape[0] == batch


@pytest.mark.parametrize("seed", [0, 1])
def test_quantizers_follow_their_weights(seed, cut_at_random):
    torch.manual_seed(0)
    graph = capture(Between(8, FakeQuantized(), 6), torch.randn(2, *IMAGE), dynamic_batch=False)
    done = cut_at_random(graph, seed)
    assert done.groups.count == 14
    assert done.index.fenced == {}
    assert len(graph.weight("op.scale")) == len(graph.weight("op.zero_point")) == len(graph.weight("op.conv.bias")) == 3
    assert "op.conv.weight" in done.index.channels


class LanguageModel(nn.Module):
    """Token embeddings tied to the output layer: the features are thinned in both at once, the vocabulary stays."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + torch.relu(self.hidden(x)))


@pytest.mark.parametrize("seed", [0, 1])
def test_tied_embeddings(seed, cut_at_random):
    torch.manual_seed(0)
    graph = capture(LanguageModel(), torch.randint(0, 11, (2, 5)))
    done = cut_at_random(graph, seed)
    assert done.groups.count == 8
    assert graph.weight("embed.weight") is graph.weight("head.weight")
    assert graph.weight("embed.weight").shape == (11, 4)
    assert graph(torch.randint(0, 11, (3, 5))).shape == (3, 5, 11)


@pytest.mark.parametrize(
    ("name", "op", "reason"),
    [
        ("total", lambda m, x: x.sum(1, keepdim=True) * x, "sum"),
        ("softmax", lambda m, x: torch.softmax(x, 1), "softmax"),
        ("running sum", lambda m, x: torch.cumsum(x, 1), "softmax or a running sum"),
        ("roll of everything", lambda m, x: torch.roll(x, 3), "roll reads them by position"),
        ("crop", lambda m, x: F.pad(x, (0, 0, 0, 0, -2, 2)), "cropped"),
        ("unknown op", lambda m, x: torch.sort(x, 1)[0], "it has no rule"),
        ("gather", lambda m, x: x.gather(1, torch.zeros_like(x, dtype=torch.long)), "it has no rule"),
    ],
)
def test_what_cannot_be_followed_stays_whole(name, op, reason):
    torch.manual_seed(0)
    index = IndexGraph(capture(Between(8, Op(op)), torch.randn(2, *IMAGE)))
    assert Groups(index).count == 0
    assert reason in index.why_frozen(index.channels["before.weight"])
